"""The quality head: how likely the token that stands at a position is right, read off the dLLM's state there.

PRISM (arXiv 2510.01384) trains it on the dLLM's own tokens, see ``dllm_gym.quality``. It lies beside the
weights of its checkpoint, in a file of its own that nobody else looks at.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from dllm_gym.backends.loading import optional_file
from dllm_gym.files import write_atomically
from dllm_gym.tensors import check_tensors, read_tensors

HEAD = "quality_head.safetensors"


class QualityHead(nn.Module):
    """From hidden states to how likely the tokens that stand there are right, computed in float32.

    A norm, a layer as wide as the state, GELU, and one number: the head, and the names, of PRISM's released
    code for LLaDA.

    Args:
        width: H, size of a hidden state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj1 = nn.Linear(width, width)
        self.proj2 = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-odds ``(...)`` of states ``(..., H)`` of any float dtype."""
        log_odds: Tensor = self.proj2(F.gelu(self.proj1(self.norm(hidden.float()))))
        return log_odds[..., 0]


def write_quality_head(directory: Path, head: QualityHead) -> None:
    """Writes the head's weights, float32, beside those of its checkpoint."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    write_atomically(directory / HEAD, lambda path: save_file(tensors, path, {"format": "pt"}))


def read_quality_head(source: str | Path, width: int) -> QualityHead:
    """The head of a checkpoint, frozen.

    Args:
        source: Directory or hub id of the checkpoint.
        width: Size of its hidden states.

    Raises:
        AttributeError: If the checkpoint has none.
        ValueError: If the file is damaged, or the head is one for other hidden states.
    """
    path = optional_file(source, HEAD)
    if path is None:
        raise AttributeError(f"{Path(source).name} has no {HEAD}, which dllm-gym quality-head trains")
    head, tensors = QualityHead(width), read_tensors(path)
    check_tensors(path, tensors, {name: tensor.shape for name, tensor in head.state_dict().items()})
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
