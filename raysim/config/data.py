"""Settings of the data: which, from where, and how its rows are divided among the clients."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from raysim.config.settings import Count, FiniteFloat, PathText, Positive, Seed, Settings


class PartitionSettings(Settings):
    """How the training rows are divided among the clients. Settings that the rule does not read are refused."""

    name: str = "dirichlet"
    """Rule: `iid`, `dirichlet` (label shares drawn per class), `dirichlet-clients` (class mix drawn per client),
    `shards` (sorted by label), `classes` (a number of classes per client), `quantity` (unequal sizes), `natural` (the
    data set's users), `file` (rows from a file) or `resample` (rows drawn by each client when needed)."""
    alpha: Positive | None = None
    """Concentration of `dirichlet`, `dirichlet-clients` and `quantity`, above 0, default 0.5; small: unequal."""
    min_examples: Count | None = None
    """Smallest number of rows of a client, held-out rows included, at least 1, default 2: clients with fewer get rows
    of the client with most; `natural` leaves such users out. Read by `iid`, both Dirichlet rules, `quantity` and
    `natural`."""
    shards_per_client: Count | None = None
    """Number of pieces of the sorted rows that a client of `shards` gets, at least 1, default 2."""
    classes_per_client: Count | None = None
    """Number of classes of which a client of `classes` gets rows, at least 1, default 2."""
    examples_per_client: Count | None = None
    """Number of rows that a client of `resample` draws, held-out rows included, at least 1, default 100."""
    path: PathText | None = None
    """File of `file`: `.json` with one list of row numbers per client, `.npz` or `.parquet` with columns `client` and
    `row`. Of `natural`: `.npy` or `.json` with the user of each training row; null: the data set's own users."""


class TransformSettings(Settings):
    """Transforms of the images: once, in the order grey to RGB, resize, pad; and at random in training."""

    normalize: bool = True
    """Whether each channel is scaled to mean 0 and standard deviation 1; false: values in [0, 1]."""
    mean: list[FiniteFloat] | None = None
    """Mean of each channel, of values in [0, 1]; null: the mean of the training images. Needs `std`."""
    std: list[Positive] | None = None
    """Standard deviation of each channel, above 0; null: that of the training images. Needs `mean`."""
    resize: Count | None = None
    """Height and width in pixels to which images are resized, bilinear; null: unchanged."""
    pad_to: Count | None = None
    """Height and width in pixels to which images are padded, with zeros on all sides; null: unchanged."""
    grey_to_rgb: bool = False
    """Whether images of one channel are repeated in three."""
    augment: list[dict[str, Any]] = Field(default_factory=list)
    """Random transforms in local training, drawn for each image: the `name` of a class in `torchvision.transforms.v2`
    and its keyword arguments, as `{name: RandomCrop, size: 32, padding: 4}`; they see values in [0, 1]."""


class DataSettings(Settings):
    """Which data, from where, and how its rows are divided among the clients."""

    name: str = "digits"
    """Data set: `digits`, `breast-cancer`, `diabetes` (regression), `digit-masks` (segmentation; all four embedded in
    scikit-learn), `mnist`, `fashionmnist`, `emnist`, `kmnist`, `cifar10`, `cifar100`, `svhn` (torchvision),
    `imagefolder` (`train/<class>/*` and `test/<class>/*`), `noise` (random, for benchmarks), `text` (files of text),
    `python-source` (Python's own library), `table` (CSV or Parquet), `series` (time series in NumPy's `.npz`), `leaf`
    (LEAF's JSON), `huggingface` (a folder of the library `datasets`, or a name on its hub), or a dotted path
    `my_pkg.data:load`."""
    root: PathText | None = None
    """Folder of the data set's files, or its file, if it has any, relative to the working directory; of `huggingface`
    also a name on its hub."""
    download: bool = False
    """Whether a missing data set may be downloaded into `root`."""
    on_nodes: bool = False
    """Whether every actor loads the data set from `root` on its own machine, where it must be the same to the byte;
    false: it is sent to each machine once. Only for `executor.kind: ray`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the loader: `{split: letters}` of `emnist`, `{target: price}` of `table`, or those of a
    dotted path."""
    transform: TransformSettings = TransformSettings()
    """Transforms of images; inputs of other kinds have none."""
    max_train_examples: Count | None = None
    """Largest number of training rows, drawn so that classes keep their shares; null: all rows."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training rows that validates, in [0, 1): taken class by class before the rows are divided among
    the clients, never trained on, and scored as often as the test rows. What is chosen by looking (the best trial of
    a sweep, `stop.accuracy`) is chosen by them; 0: by the test rows."""
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of a client's rows that is held out of training to score its submodel, in [0, 1)."""
    partition: PartitionSettings = PartitionSettings()
    """How the training rows are divided among the clients."""
    split_seed: Seed | None = None
    """Seed of the split: which rows are used, which validate, which client owns and holds out which, and which device
    it has; null: `seed`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.on_nodes and self.download:
            raise ValueError("on_nodes=True is not allowed with download=True; allowed: files that exist already")
        return self
