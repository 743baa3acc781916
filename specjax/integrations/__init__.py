"""specjax inside other programs: t5x (`t5x_model`, `t5x_checkpoints`) and the official gemma package (`gemma_package`).

Nothing is imported here: each module needs its own optional extra.
"""
