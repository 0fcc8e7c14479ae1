"""The contract of a model, prompt, corpus or task, and its problems: the findings of `t5-pipeline doctor`."""
