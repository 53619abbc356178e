"""Other implementations: a checkout of their code, and what runs in their environment."""
