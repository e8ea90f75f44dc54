"""What LLM Foundry and streaming make of the same input: run once, as a program, because it imports torch.

    python foundry_reference.py INSTRUCTIONS.json

The instructions name conversions to run (LLM Foundry's convert_dataset_json), arrays to write (streaming's MDSWriter)
and folders to read (LLM Foundry's StreamingTextDataset); what was read is printed as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
from llmfoundry.command_utils.data_prep.convert_dataset_json import convert_dataset_json_from_args
from llmfoundry.data.text_data import StreamingTextDataset
from streaming import MDSWriter
from transformers import AutoTokenizer


def main() -> None:
    instructions = json.loads(Path(sys.argv[1]).read_text())
    for job in instructions["convert"]:
        convert_dataset_json_from_args(compression=None, split="train", **job)
    for job in instructions["write"]:
        columns = {"tokens": f"ndarray:{job['dtype']}"}
        with MDSWriter(columns=columns, out=job["out"], size_limit=job["size_limit"]) as writer:
            for row in np.load(job["array"]):
                writer.write({"tokens": row})
    read = {}
    for job in instructions["read"]:
        dataset = StreamingTextDataset(
            tokenizer=AutoTokenizer.from_pretrained(job["tokenizer"]),
            max_seq_len=job["max_seq_len"],
            local=job["local"],
            split=job["split"],
            shuffle=False,
            batch_size=1,
        )
        rows = [dataset[index] for index in range(len(dataset))]
        read[f"{job['local']}/{job['split']}"] = {
            "dtype": sorted({str(row.dtype) for row in rows}),
            "tokens": [row.tolist() for row in rows],
        }
    print("\n" + json.dumps(read))


if __name__ == "__main__":
    main()
