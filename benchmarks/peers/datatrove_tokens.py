"""datatrove's method: its JSON Lines reader and its tokenizer, with one task per file.

``python -m benchmarks.peers.datatrove_tokens FOLDER TOKENIZER.json OUT PROCESSES``
"""

import sys
from pathlib import Path


def main(folder: str, tokenizer: str, out: str, processes: str) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    files = len(list(Path(folder).glob("*.jsonl.zst")))
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder, glob_pattern="*.jsonl.zst", compression="zstd"),
            DocumentTokenizer(
                output_folder=f"{out}/tokens", tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>"
            ),
        ],
        tasks=files,
        workers=int(processes),
        logging_dir=f"{out}/logs",
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
