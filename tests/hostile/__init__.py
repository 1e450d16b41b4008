"""Hostile inputs: every decoder of outside data eats them, and answers with an error that Fedhelm raises on purpose."""
