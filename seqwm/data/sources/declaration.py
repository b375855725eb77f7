"""What our own Parquet files state about themselves: exact spaces, columns by leaf path, provenance.

It stands as JSON in the file's metadata under `seqwm`; other programs see the columns alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from seqwm.core.errors import DataError, SpaceError
from seqwm.core.spaces import is_image, leaf_spaces, space_from_json, space_to_json
from seqwm.core.types import Scalar, Spaces
from seqwm.data.problems import Problem
from seqwm.data.sources.columns import is_image_type, value_type

METADATA_KEY = b"seqwm"
FORMAT_VERSION = 1
_ALWAYS = {
    "next.terminated",
    "next.truncated",
    "episode_index",
    "frame_index",
    "is_final_observation",
    "episode_meta",
}


@dataclass(frozen=True, slots=True)
class Declaration:
    """The statement of one file.

    Attributes:
        spaces: what one step looks like.
        observations, actions: column of each leaf by its path; no actions, no entry.
        rewards: whether there is a column of rewards.
        provenance: where the rows come from.
    """

    spaces: Spaces
    observations: Mapping[str, str]
    actions: Mapping[str, str]
    rewards: bool
    provenance: Mapping[str, Scalar] = field(default_factory=dict)

    @classmethod
    def of(cls, spaces: Spaces, rewards: bool, provenance: Mapping[str, Scalar]) -> Declaration:
        """With LeRobot's names: observation.state, observation.image, observation.<leaf>, action, action.<leaf>.

        Raises:
            SpaceError: where two leaves would have one name ('a/b' and 'a.b').
        """
        alone = "observation.image" if is_image(spaces.observation) else "observation.state"
        observations = {
            path: f"observation.{path.replace('/', '.')}" if path else alone for path in leaf_spaces(spaces.observation)
        }
        actions = {
            path: f"action.{path.replace('/', '.')}" if path else "action"
            for path in (leaf_spaces(spaces.action) if spaces.action is not None else ())
        }
        for columns in (observations, actions):
            if len(set(columns.values())) < len(columns):
                names = ", ".join(columns)
                raise SpaceError(f"leaves {names}: two of them would become one column; rename one without '.'")
        return cls(spaces, observations, actions, rewards, provenance)

    def to_metadata(self) -> bytes:
        """The JSON that `from_metadata` reads."""
        action = self.spaces.action
        written = {
            "format": FORMAT_VERSION,
            "observation_space": space_to_json(self.spaces.observation),
            "action_space": space_to_json(action) if action is not None else None,
            "observations": dict(self.observations),
            "actions": dict(self.actions),
            "rewards": self.rewards,
            "provenance": dict(self.provenance),
        }
        return json.dumps(written).encode()

    @classmethod
    def from_schema(cls, schema: pa.Schema, file: str) -> Declaration | None:
        """The declaration in a file's schema; None where another program wrote the file.

        Raises:
            DataError: for a declaration that cannot be read or does not fit the columns.
        """
        text = (schema.metadata or {}).get(METADATA_KEY)
        if text is None:
            return None
        try:
            written = json.loads(text)
            if (version := written["format"]) != FORMAT_VERSION:
                found, expected, mend = f"format {version!r}", f"format {FORMAT_VERSION}", "read it with a newer seqwm"
                raise DataError([Problem("unknown-version", found, expected, mend, file)])
            action = written["action_space"]
            spaces = Spaces(space_from_json(written["observation_space"]), space_from_json(action) if action else None)
            columns = dict(written["observations"]), dict(written["actions"])
            declared = cls(spaces, *columns, bool(written["rewards"]), dict(written["provenance"]))
            declared._check(schema)
        except (KeyError, TypeError, ValueError, AssertionError, AttributeError, SpaceError) as error:
            mend = "export the store again, or remove the metadata 'seqwm' to have the columns read as they are"
            found, expected = f"metadata that does not fit ({error!r})", "the spaces of these columns"
            raise DataError([Problem("spaces-mismatch", found, expected, mend, file)]) from error
        return declared

    def _check(self, schema: pa.Schema) -> None:
        if missing := (_ALWAYS | ({"next.reward"} if self.rewards else set())) - set(schema.names):
            raise ValueError(f"no column '{min(missing)}'")
        spaces = [(self.observations, self.spaces.observation)]
        if self.spaces.action is not None:
            spaces.append((self.actions, self.spaces.action))
        elif self.actions:
            raise ValueError("action columns without an action space")
        for columns, space in spaces:
            leaves = leaf_spaces(space)
            if set(columns) != set(leaves):
                raise ValueError(f"columns for {sorted(columns)}, leaves {sorted(leaves)}")
            for path, column in columns.items():
                kind, dtype = value_type(schema.field(column).type), np.dtype(leaves[path].dtype)
                if is_image(leaves[path]) != is_image_type(kind):
                    raise ValueError(f"column '{column}' is {kind}, its leaf {leaves[path]}")
                if not is_image_type(kind) and kind != pa.from_numpy_dtype(dtype):
                    raise ValueError(f"column '{column}' is {kind}, its leaf {dtype}")
