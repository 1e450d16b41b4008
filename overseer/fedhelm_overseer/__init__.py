"""The overseer: one lease row, granted to one server at a time, behind HTTPS with client certificates."""
