"""From a project to signed start-up kits, and from a kit to a running participant."""
