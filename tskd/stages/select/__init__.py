"""4. Select: keep the responses that carry what only the teacher knows.

A rule is any callable from scored responses to a ``Selection``. Most are a *criterion*, a number for each response, and
a *cut*: at least a threshold (``Threshold``), the best few (``Top``), from a quantile up (``Quantile``). A criterion
that is no number (infinite under both models, say) is never kept.

Where a threshold is ``auto``, the seeds tell it, for they are what is to be kept.

A rule of your own is one class in a file of yours, named by ``_target_`` and allowed by ``allow=``; a subclass of
``Threshold`` with a criterion can be ranked by, too. What it needs measured beside the two nlls, it names in
``measures`` (``tskd.modules.scorer``).
"""

from tskd.stages.select.stage import AUTO as AUTO
from tskd.stages.select.stage import MIN_SEEDS as MIN_SEEDS
from tskd.stages.select.stage import ByTheSeeds as ByTheSeeds
from tskd.stages.select.stage import Level as Level
from tskd.stages.select.stage import Rule as Rule
from tskd.stages.select.stage import Select as Select
from tskd.stages.select.stage import shown as shown
from tskd.stages.select.stage import split as split
from tskd.stages.select.subsets import AtMost as AtMost
from tskd.stages.select.subsets import KeepAll as KeepAll
from tskd.stages.select.subsets import Quantile as Quantile
from tskd.stages.select.subsets import Random as Random
from tskd.stages.select.subsets import SeedsOnly as SeedsOnly
from tskd.stages.select.subsets import Top as Top
from tskd.stages.select.thresholds import ConfidentTeacher as ConfidentTeacher
from tskd.stages.select.thresholds import Discriminator as Discriminator
from tskd.stages.select.thresholds import InversePplDifference as InversePplDifference
from tskd.stages.select.thresholds import Kl as Kl
from tskd.stages.select.thresholds import LogPplDifference as LogPplDifference
from tskd.stages.select.thresholds import PplDifference as PplDifference
from tskd.stages.select.thresholds import PplRatio as PplRatio
from tskd.stages.select.thresholds import SeedGap as SeedGap
from tskd.stages.select.thresholds import SeedLikeness as SeedLikeness
from tskd.stages.select.thresholds import SeedShift as SeedShift
from tskd.stages.select.thresholds import TargetGap as TargetGap
from tskd.stages.select.thresholds import Threshold as Threshold
from tskd.stages.select.thresholds import reached_by_seeds as reached_by_seeds
