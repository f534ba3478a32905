"""Stage two, reinforced fine-tuning: experience, rewards, log-probabilities, update."""
