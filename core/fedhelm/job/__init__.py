"""Jobs: what a folder says (`load_job`), how it travels (`bundle`), and how it lives (`lifecycle`)."""
