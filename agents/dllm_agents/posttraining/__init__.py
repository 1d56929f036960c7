"""Training the dLLM itself on the environment's rewards: ``dllm-gym posttrain``."""
