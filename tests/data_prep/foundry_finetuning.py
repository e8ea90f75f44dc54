"""What LLM Foundry makes of instruction data: run once, as a program, because it imports torch.

    python foundry_finetuning.py JOBS.json

Each job is converted with LLM Foundry's convert_finetuning_dataset into ROOT/theirs/NAME; then its finetuning loader
reads ROOT/ours/NAME with the loss on every answer. Prints, by name, ids and labels of each sample without padding.
"""

import json
import sys
from pathlib import Path

from llmfoundry.command_utils.data_prep.convert_finetuning_dataset import convert_finetuning_dataset
from llmfoundry.data.finetuning.dataloader import build_finetuning_dataloader
from transformers import AutoTokenizer


def main() -> None:
    read = {}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        root, name = job["root"], job["name"]
        convert_finetuning_dataset(
            dataset="json",
            data_subset=None,
            splits=["train"],
            preprocessor=None,
            data_files=[job["source"]],
            skip_preprocessing=True,
            out_root=f"{root}/theirs/{name}",
            local=None,
            compression=None,
            num_workers=1,
            tokenizer=job["tokenizer"],
            tokenizer_kwargs={},
            max_seq_len=4000,
            target_prompts="none",
            target_responses="all",
            encoder_decoder=False,
        )
        dataset = {
            "remote": f"{root}/ours/{name}",
            "local": f"{root}/read/{name}",
            "split": "train",
            "max_seq_len": 4000,
            "shuffle": False,
            "target_prompts": "none",
            "target_responses": "all",
            "decoder_only_format": True,
            "allow_pad_trimming": False,
        }
        loader = build_finetuning_dataloader(
            tokenizer=AutoTokenizer.from_pretrained(job["tokenizer"]),
            device_batch_size=1,
            dataset=dataset,
            num_workers=0,
            drop_last=False,
            prefetch_factor=None,
            persistent_workers=False,
        ).dataloader
        ids, labels = [], []
        for batch in loader:
            kept = batch["attention_mask"][0].bool()
            ids.append(batch["input_ids"][0][kept].tolist())
            labels.append(batch["labels"][0][kept].tolist())
        read[name] = (ids, labels)
    print("\n" + json.dumps(read))


if __name__ == "__main__":
    main()
