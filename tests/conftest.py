"""What all tests share: one thread, no network, no display, no deadlines."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("dllm_gym", parent=settings(), deadline=None)
settings.load_profile("dllm_gym")
