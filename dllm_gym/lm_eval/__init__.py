"""A model of lm-evaluation-harness whose texts an agent of ours decodes; ``model`` needs its package."""
