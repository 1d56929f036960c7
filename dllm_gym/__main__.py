"""``python -m dllm_gym`` is ``dllm-gym``."""

from dllm_gym.cli import main

if __name__ == "__main__":
    main()
