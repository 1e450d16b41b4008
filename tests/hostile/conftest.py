"""Says at the end how many inputs each decoder ate."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter):
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "eaten" and report.when == "call":
                    terminalreporter.section(f"hostile inputs eaten: {report.nodeid.rpartition('::')[2]}")
                    terminalreporter.write_line(value)
