"""Who asks, and whether: API keys, policy, limits."""
