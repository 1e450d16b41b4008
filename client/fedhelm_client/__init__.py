"""The site: an agent that follows the primary, and job processes below it that run the users' scripts."""
