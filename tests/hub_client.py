"""Does what users do with a Hub, in processes of their own: an endpoint is read when a library is imported.

hub_client.py publish JOBS RESULT                  runs `vit-family` with each job's arguments, or pushes a staged
folder hub_client.py load remote|registered JOBS RESULT   loads every class of each job's repository, saves and pushes
it again
"""

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace


def publish(jobs: list[dict]) -> list[dict]:
    """
    Exit code and output for each job: `{"argv": [...], "without": [names of environment variables]}` for the command,
    or `{"push": arguments}` for only a push, since the command's verification takes seconds.
    """
    from vit_family_launcher import main

    from hf_vit_family.publishing.publish import PublishError, push

    results = []
    if "HURRY" in os.environ:  # no wait between two tries
        import huggingface_hub.utils._http

        huggingface_hub.utils._http.time = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    for job in jobs:
        kept = {name: os.environ.pop(name) for name in job.get("without", [])}
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            if "argv" in job:
                code = main(job["argv"])
            else:
                try:
                    print(push(**job["push"]))
                    code = 0
                except PublishError as error:
                    print(error, file=sys.stderr)
                    code = 2
        os.environ.update(kept)
        results.append({"code": code, "stdout": out.getvalue(), "stderr": err.getvalue()})
    return results


def load(trust_remote_code: bool, jobs: list[dict], folder: Path) -> None:
    """
    For each job, `{"source": Hub id or folder, "case": name, "image": path}`, writes `case.safetensors` with every
    output, `case.json` with what was seen, and the folder `case`: model and processor saved again. From the Hub it also
    pushes both again, to `source + "-again"`.
    """
    if trust_remote_code:
        sys.modules["hf_vit_family"] = None  # importing it fails, however it is installed
    else:
        import hf_vit_family  # noqa: F401
    import numpy as np
    import torch
    import transformers
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoImageProcessor, AutoVideoProcessor, pipeline

    trust = {"trust_remote_code": True} if trust_remote_code else {}
    for job in jobs:
        source, case = job["source"], job["case"]
        example = Image.open(job["image"])
        outputs, seen = {}, {"modules": []}
        config = AutoConfig.from_pretrained(source, **trust)
        seen["modules"].append(type(config).__module__)
        for auto_class in config.auto_map:
            if auto_class == "AutoConfig" or (auto_class == "AutoBackbone" and os.path.isdir(source)):
                continue  # AutoBackbone.from_pretrained takes Hub ids only
            torch.manual_seed(0)
            model = getattr(transformers, auto_class).from_pretrained(source, **trust).eval()
            seen["modules"].append(type(model).__module__)
            pixel_values = torch.rand(2, *config.input_shape, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                for name, value in model(pixel_values).items():
                    value = value[-1] if isinstance(value, tuple) else value
                    outputs[f"{auto_class}.{name}"] = value.contiguous()
        task = (
            "image-classification" if "AutoModelForImageClassification" in config.auto_map else "video-classification"
        )
        if task == "video-classification":
            example = np.stack([np.roll(example, shift, axis=1) for shift in range(10)])
            processors = {"torchvision": AutoVideoProcessor.from_pretrained(source, **trust)}
        else:
            processors = {
                backend: AutoImageProcessor.from_pretrained(source, backend=backend, **trust)
                for backend in ("torchvision", "pil")
            }
        for backend, processor in processors.items():
            seen["modules"].append(type(processor).__module__)
            outputs[f"processor.{backend}"] = processor(example, return_tensors="pt")["pixel_values"]
        classify = pipeline(task, model=source, **trust)
        seen["pipeline"] = classify(example)
        classifier = classify.model
        # Both ways to push: while saving, and from a temporary folder.
        push = {} if os.path.isdir(source) else {"push_to_hub": True, "repo_id": f"{source}-again"}
        classifier.save_pretrained(folder / case, **push)
        processor.save_pretrained(folder / case)
        AutoConfig.from_pretrained(source, **trust).save_pretrained(folder / f"{case}-config")
        if push:
            processor.push_to_hub(f"{source}-again")
        save_file(outputs, folder / f"{case}.safetensors")
        (folder / f"{case}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    action, *mode, jobs, result = sys.argv[1:]
    jobs = json.loads(Path(jobs).read_text())
    if action == "publish":
        Path(result).write_text(json.dumps(publish(jobs)))
    else:
        load(mode == ["remote"], jobs, Path(result))
