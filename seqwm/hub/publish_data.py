"""`seqwm data publish`: a store to a Hub data set that `datasets` opens and `seqwm.load` gives back to the last bit.

README.md, histograms.png              the card (`seqwm.hub.dataset_card`)
data/train-00000-of-0000N.parquet      one row a step, one row group an episode (`seqwm.data.export`)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from seqwm.data.export import write_parquet
from seqwm.data.store import TrajectoryStore
from seqwm.hub.dataset_card import write_dataset_card
from seqwm.hub.upload import put_aside, upload_folder

_OWNED = ("data/*.parquet", "README.md", "histograms.png")


def publish_data(
    store: TrajectoryStore,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: str | Path | None = None,
) -> str:
    """Publish a store, in one commit; again without effect where nothing has changed.

    Args:
        store: of any source.
        repository: 'user/name', made where it is not there.
        private: whether a repository that is made is private.
        revision: a branch, made where it is not there; `main` when None.
        dry_run: write the exact folder there, new or empty, and send nothing.

    Returns:
        The address of the commit, or the folder of a dry run.

    Raises:
        DataError: the store holds no episode.
        SpaceError: two leaves of a space would become one column.
        HubError: naming cause and next step; the repository is as it was then.
    """
    with tempfile.TemporaryDirectory(prefix="seqwm-publish-") as temporary:
        folder = Path(temporary) / "repository"
        write_parquet(store.episodes(), store.spaces, folder, provenance=store.provenance)
        write_dataset_card(store, repository, folder)
        if dry_run is not None:
            return str(put_aside(folder, Path(dry_run)))
        message = f"Publish {len(store):,} episodes"
        return upload_folder(
            folder, repository, kind="dataset", private=private, revision=revision, message=message, owned=_OWNED
        )
