"""Adapters through which servers of diffusion language models ask an agent what to reveal."""
