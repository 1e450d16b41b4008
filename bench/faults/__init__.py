"""The fault laboratory: real federations, one fault at a time, and an offline check of what is left.

``python -m bench.faults`` runs trials and adds a line of JSON for each to ``bench/results-faults.jsonl``.
"""
