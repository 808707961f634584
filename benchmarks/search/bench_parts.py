"""Networks that are never built: their fields are what the searched spaces consist of, so that recipes hold them."""

from scrimp_trainers.recipe.networks import Network


class Synthetic(Network):
    """Twelve fields of several kinds; which of them a recipe has depends on others."""

    family: str = "a"
    activation: str = "a"
    schedule: str = "a"
    augment: str = "a"
    rate: float = 1e-2
    width: int = 64
    depth: int = 3
    decay: float = 1e-4
    warmup: float = 0.1
    dropout: float = 0.1
    patch: int = 1
    momentum: float = 0.9


class FCNet(Network):
    """The fields of FCNet's tables (Klein and Hutter 2019); numbers are places in the table's list of values."""

    activation_fn_1: str = "relu"
    activation_fn_2: str = "relu"
    batch_size: int = 0
    dropout_1: int = 0
    dropout_2: int = 0
    init_lr: int = 0
    lr_schedule: str = "const"
    n_units_1: int = 0
    n_units_2: int = 0


class NasBench(Network):
    """The operations of a cell of NAS-Bench-201 (Dong and Yang 2020)."""

    Op0: str = "none"
    Op1: str = "none"
    Op2: str = "none"
    Op3: str = "none"
    Op4: str = "none"
    Op5: str = "none"
