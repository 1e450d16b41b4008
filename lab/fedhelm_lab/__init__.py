"""Local federations: the POC and the demo. Above the roles, because it needs both ends."""
