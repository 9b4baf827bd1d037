"""The benchmarks as tasks of lm-evaluation-harness: YAML files for it to read, and the documents that they ask.

lm_eval --model hf --model_args pretrained=DIR --include_path tskd/tasks/lm_eval_tasks --tasks tskd_bbh \\
    --metadata '{"root": "DATA", "subset": "navigate"}' --apply_chat_template

``--metadata`` takes the settings of the task's class in ``tskd.tasks``, which makes the questions here too.
"""
