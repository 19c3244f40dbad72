"""Post-training on rewards: rollouts by our own sampler, rewards, and policy losses."""
