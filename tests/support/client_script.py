"""A model of Qwen2.5-VL in the transformers of this environment; it needs nothing of ours.

    python client_script.py '{"task": "write", "folders": {"yarn": "DIR"}, "inputs": "x.npz"}'

"write" makes of each folder's config.json a model with random weights, saves it there as this
version does and computes with it; "read" loads each folder and merges the adapters of PEFT in the
folder `adapter`, where one is given; "tune" puts new ones beside the model and saves them there.
Logits and the ids that greedy decoding adds to the prompt lie afterwards in DIR/client.npz. The
file of `inputs` holds the arguments of the model.
"""

import inspect
import json
import pathlib
import sys

import numpy as np
import torch
import transformers

STEPS = 8  # ids that decoding adds


def make_model(folder, padded):
    """Every weight random, norms and biases too, so that none is left out unseen."""
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).float()
    if padded:
        model.resize_token_embeddings(pad_to_multiple_of=64)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn_like(value)
            if "norm" in name or "ln_q" in name:
                value.copy_(1 + 0.2 * noise)
            elif value.ndim == 1:
                value.copy_(0.1 * noise)
            else:
                value.copy_(noise * (1.0 / np.prod(value.shape[1:])) ** 0.5)
    model.save_pretrained(folder)
    return model


def tune(model, adapter):
    """Random adapters of both towers; PEFT itself begins with a product of zero."""
    import peft

    targets = ["q_proj", "v_proj", "down_proj", "attn.qkv", "merger.mlp.0"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn_like(value))
    model.save_pretrained(adapter)
    return model


def compute(model, inputs):
    """Logits of the prompt, and what greedy decoding adds to it."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(bare.forward).parameters
    inputs = {name: torch.tensor(value) for name, value in inputs.items() if name in known}
    model.eval()
    with torch.no_grad():
        logits = model(**inputs).logits[0].float().numpy()
        bare.generation_config = model.generation_config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=STEPS, eos_token_id=None, pad_token_id=0
        )
        ids = model.generate(**inputs)[0].numpy()
    return logits, ids[inputs["input_ids"].shape[1] :]


def main(job):
    inputs = dict(np.load(job["inputs"]))
    for name, folder in job["folders"].items():
        if job["task"] == "write":
            model = make_model(folder, padded=name == "padded")
        else:
            model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder, torch_dtype=torch.float32
            )
        if job["task"] == "tune":
            model = tune(model, job["adapter"])
        elif adapter := job.get("adapter"):
            import peft

            model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
        logits, ids = compute(model, inputs)
        np.savez(pathlib.Path(folder) / "client.npz", logits=logits, ids=ids)
    print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
