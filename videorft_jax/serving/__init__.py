"""A server of chat completions in OpenAI's protocol, whose requests share one running batch."""
