"""longctx_rl: five post-training methods for long context as points of one objective."""

__version__ = "0.1.0"
