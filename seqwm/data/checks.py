"""Every class of problem that a reader, a check or a store can name, by its slug, in one sentence each.

The numbers are those of the design's list of what a trajectory loader must refuse; a class may be told by several
slugs, where the mend differs.
"""

from __future__ import annotations

CHECKS: dict[str, str] = {
    # 1 numbers that are none
    "not-finite": "A NaN or an infinity in observations, actions or rewards, or a return that float32 cannot hold.",
    # 2, 3 lengths
    "ragged-episode": "The columns of an episode have different numbers of steps.",
    "ragged-row": "The lists in one column have different lengths.",
    "observation-length": "There are neither T+1 observations nor, in the whole set, T.",
    "mixed-final-observation": "Some episodes keep their final observation and some do not.",
    # 4 dtypes
    "wrong-type": "A dtype that cannot become the one of the space without a change of meaning, such as int for float.",
    "narrowing-cast": "A wider float than the space says; it is rounded.",
    "object-dtype": "A column of Python objects or references, which are never read.",
    # 5 shapes
    "wrong-shape": "Steps of another shape than the space says.",
    "missing-column": "A column that is needed is not there.",
    "unknown-column": "An episode has a column that the space does not name.",
    "columns-left-out": "Columns whose meaning is not known are not read.",
    # 6, 7 ends
    "no-end-flags": "No column marks ends, so every episode is a tail.",
    "missing-end-flag": "An episode has no end flag on its last step; only the last one of a log may be open.",
    "end-in-middle": "An end flag stands before the last step of an episode.",
    "contradicting-flags": "terminated, truncated and done contradict each other.",
    "end-kind-inferred": "One flag stands for terminations and truncations alike and had to be told apart.",
    # 8, 9 spaces
    "outside-space": "A value outside its space: an error in actions, a warning in observations.",
    "space-inferred": "A space that is not stated was read off the data.",
    "unsupported-space": "A space that seqwm does not store.",
    # 10, 11 nothing in it
    "empty-episode": "An episode without a transition.",
    "no-transition": "A single step without a final observation: nothing follows its only action.",
    # 12, 13, 14 order
    "duplicate-episode": "The same episode number stands twice.",
    "missing-episode": "A number is missing among the episodes.",
    "frame-order": "Frame numbers have gaps or are not sorted.",
    "interleaved-episodes": "Rows of an episode stand behind those of another.",
    "broken-chain": "A next observation is not the observation of the row behind it, and no end flag stands between.",
    # 15, 20, 21 files that belong together
    "spaces-mismatch": "A file states spaces that its columns do not have.",
    "schema-drift": "Files of one set have different columns or types.",
    "missing-shard": "A file of a numbered set is not there.",
    "split-left-out": "A split of the set is not read.",
    "several-datasets": "A repository holds several data sets and none was named.",
    # 16 images
    "image-shape": "An image of another size than the others, or a grey one among colour ones.",
    "image-format": "An image of a mode other than grey, RGB or RGBA.",
    "image-dtype": "Images stored as floats.",
    "image-broken": "Bytes that do not decode to an image.",
    "image-outside": "An image named by path instead of kept in the file.",
    "channel-order": "Images with the channel first.",
    # 17 video
    "video-too-short": "A video with fewer frames than its rows.",
    "video-drift": "A frame that lies further than half a frame from the time its row states.",
    "video-fps": "A video of another frame rate than the metadata states, or than the other videos of its folder.",
    # 18, 19 damage
    "corrupt-file": "A file that is empty, cut short or of another kind than its name says.",
    "damaged-store": "A file of a store that does not hold what the store describes.",
    "checksum-mismatch": "A file of a store whose bytes have changed.",
    # 22 nulls
    "null-value": "A null in a column.",
    # 23 versions
    "unknown-version": "A format version that this release does not know.",
    "unknown-format": "A storage format or filter that this release does not read.",
    # 24 statements about the data
    "totals-differ": "The number of episodes, steps or frames in the metadata is not that of the data.",
    "broken-metadata": "Metadata that cannot be read.",
    # 25 lengths no file can have
    "impossible-length": "A stated length that the file is too small to hold.",
    # 26, 27, 28 nothing from outside, nothing that runs
    "path-outside": "A path in the metadata that leads out of the data set's folder.",
    "outside-file": "A link, external storage or virtual data set that leads out of an HDF5 file.",
    "no-parquet": "A repository without Parquet or Arrow; scripts and pickles are never run.",
    "environment-code": "The environment that is named would need code from the data set, which is never run.",
    # 29 what may be absent
    "no-rewards": "No reward column; only methods that need no rewards can learn from it.",
    "no-actions": "No action column; only methods that need no actions can learn from it.",
    # 30 labels
    "cut-return": "Episodes were cut, so their returns and returns-to-go are those of the log, not of the task.",
    # 31 nothing to normalise
    "constant-column": "A column has one value in the whole set; normalising leaves it as it is.",
    # 32 nothing at all
    "empty-dataset": "No episode, or none after filters.",
    # where things are
    "unknown-source": "A name that no reader knows, or a path that does not exist.",
    "unreachable": "A data set that is not local and cannot be fetched.",
    "not-a-store": "A folder that is no store.",
    "not-a-stream": "A source that is to be streamed and is not on the Hub.",
    "store-exists": "A folder that already holds files and is not overwritten.",
}
