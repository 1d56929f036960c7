"""Episodes as data: recorded into Minari datasets, read back, and what may be chosen among them.

Datasets are written and read with Minari, the extra ``minari``, which is imported only then.
"""

from dllm_gym.offline.episodes import Episodes, read_dataset
from dllm_gym.offline.preferences import best_episodes, preference_pairs, write_pairs
from dllm_gym.offline.recording import MIXED, mixed_agents, record_dataset
from dllm_gym.offline.shipped import shipped_datasets

__all__ = [
    "MIXED",
    "Episodes",
    "best_episodes",
    "mixed_agents",
    "preference_pairs",
    "read_dataset",
    "record_dataset",
    "shipped_datasets",
    "write_pairs",
]
