"""nanoGPT's method: ``datasets`` reads, ``map`` tokenizes in parallel, and a memory map is written in 1,024 batches.

``python -m benchmarks.peers.datasets_map FOLDER TOKENIZER.json OUT PROCESSES``
"""

import sys
from pathlib import Path

import numpy as np


def main(folder: str, tokenizer: str, out: str, processes: str) -> None:
    from datasets import load_dataset
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(tokenizer)
    end = encoder.token_to_id("<|endoftext|>")
    files = sorted(str(path) for path in Path(folder).glob("*.jsonl.zst"))
    dataset = load_dataset("json", data_files=files, split="train", cache_dir=f"{out}/cache")
    split = dataset.train_test_split(test_size=0.0005, seed=2357, shuffle=True)

    def process(example: dict) -> dict:
        ids = [*encoder.encode(example["text"], add_special_tokens=False).ids, end]
        return {"ids": ids, "len": len(ids)}

    tokenized = split.map(process, remove_columns=["text"], num_proc=int(processes))
    for name, rows in tokenized.items():
        total = int(np.sum(rows["len"], dtype=np.uint64))
        array = np.memmap(f"{out}/{name}.bin", dtype=np.uint16, mode="w+", shape=(total,))
        at, batches = 0, min(1024, len(rows))
        for number in range(batches):
            batch = rows.shard(num_shards=batches, index=number, contiguous=True).with_format("numpy")
            ids = np.concatenate(batch["ids"])
            array[at : at + len(ids)] = ids
            at += len(ids)
        array.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
