"""Who somebody is and what they may do: certificates, signatures, policy, TLS."""
