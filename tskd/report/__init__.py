"""From the folders of finished runs to what they say: runs → statistics → findings → tables, figures, a page.

python -m tskd.report outputs/tuneshift/…      # tables and figures of runs and sweeps
python -m tskd.report grid outputs/…           # the published tables, and what these runs have reached of them
"""
