"""What a search by Optuna keeps its trials in, where they are for this search alone (``hydra/sweeper=search``)."""

from hydra.errors import CompactHydraException
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial


class Trials(InMemoryStorage):
    """Optuna's own for one process, which says in a line that no trial has succeeded: Hydra shows that one as it is."""

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        try:
            return super().get_best_trial(study_id)
        except ValueError:
            raise CompactHydraException(
                f"None of the {self.get_n_trials(study_id)} trials of the search succeeded, so there is no best one; "
                f"each job's error is below. Search among other values, or mend what all of them lack."
            ) from None
