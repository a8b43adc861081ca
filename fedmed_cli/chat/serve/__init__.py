"""A server that speaks OpenAI's chat interface, with guardrails in front."""
