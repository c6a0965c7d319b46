"""The settings that every experiment starts from: the published recipe where it names one.

Each experiment's `get_config(arg)` changes what it needs. All spans in samples are at `signal.target_rate`.
"""

from ml_collections import ConfigDict


def get_defaults() -> ConfigDict:
    """A fresh copy of the shared defaults."""
    config = ConfigDict()
    config.seed = 0
    _set_data(config)
    _set_model(config)
    _set_run(config)
    return config


def _set_data(config: ConfigDict) -> None:
    """From recordings to prompts."""
    config.data = ConfigDict()
    config.data.corpus = "ptbxl"  # "ptbxl", "mimic": reports; "ecg_qa", "ecg_qa_mimic": ECG-QA; "ecg_chat"; "own": a table
    config.data.root = "data/ptbxl"  # folder of the recordings: with ptbxl_database.csv, record_list.csv, or your own
    config.data.sample_rate = 500  # Hz; 500 or 100, which of PTB-XL's two sets is read
    config.data.ecgqa_root = ""  # the folder ecgqa of ECG-QA; "" is the folder ecgqa beside data.root
    config.data.question = "Could you please help me explain my ECG?"  # ptbxl, mimic: asked of every recording
    config.data.translations = ""  # ptbxl: CSV file with ecg_id and report, whose reports take the place of the German ones
    config.data.conversations = ""  # ecg_chat: its JSON file; "" is pretrain_mimic.json in data.root
    config.data.table = ""  # own: CSV or JSONL file with record, question, answer, patient, and maybe split and id
    # ECG-Byte's own: PTB-XL's folds 1-7, 8, 9-10 where there is a diagnostic superclass; ECG-QA's questions in both wordings,
    # ECG-Chat's conversations and MIMIC's recordings 70/12/18%, whoever the patient, in the place of `split` and `wording`.
    config.data.published_split = False
    config.data.question_types = ("single-verify", "single-choose", "single-query")  # ecg_qa; () takes all
    config.data.wording = "template"  # ecg_qa: "template" or "paraphrased"
    config.data.split = "official"  # ecg_qa: "official", or "folds": the recordings' (PTB-XL's 1-8, 9, 10); by patient
    config.data.synthetic_records = 0  # > 0: so many recordings and their questions are made in the work directory
    config.data.max_segments = 0  # segments taken from each recording, from its start; 0: all
    config.data.max_bad_fraction = 0.05  # the stage fails if a larger share of the examples is set aside
    config.data.sequences_per_file = 20_000
    config.data.packing = False  # several sequences in one row of a batch; train.batch_size then counts rows
    # Without packing: rows of a batch are as long as the shortest of these that holds them (tokens); (): all prompt.max_length.
    config.data.length_buckets = (320, 384, 448, 512, 640, 768)

    config.signal = ConfigDict()
    config.signal.target_rate = 250.0  # Hz; 0 keeps each recording's own
    config.signal.segment_length = 500  # samples: 2 s
    config.signal.notches = (50.0, 60.0)  # Hz; () leaves the step out
    config.signal.notch_quality = 30.0
    config.signal.band = (0.5, 100.0)  # Hz; () leaves the step out
    config.signal.highpass = 0.05  # Hz; 0 leaves the step out
    config.signal.order = 4
    config.signal.wavelet = "db6"  # "" leaves the step out
    config.signal.wavelet_level = 4
    config.signal.max_amplitude = 20.0  # mV; a recording beyond it is set aside; 0 takes all

    config.prepare = ConfigDict()
    config.prepare.workers = 1  # processes on this machine; more than 1 need the extra `cluster`
    config.prepare.scheduler = ""  # tcp://host:8786: a Dask scheduler whose workers see the same files
    config.prepare.task_records = 256  # recordings of one task; the result does not depend on it
    config.prepare.cache = ""  # folder of cleaned symbols, which several runs may share; "" is cache/ in the work directory

    config.tokenizer = ConfigDict()
    config.tokenizer.file = ""  # an ecg_tokenizer.json to be used as it is; "": one is trained
    config.tokenizer.num_merges = 3500
    config.tokenizer.boundary = (
        ""  # what no token crosses: "" nothing, as published; "record": segments' ends; "lead": leads' ends
    )
    config.tokenizer.sampling = "all"  # training recordings that BPE sees: "all"; "random"; "stratified" over morphologies
    config.tokenizer.sample_records = 10_000  # so many of them, where not all; each takes up to 100 KB of memory
    config.tokenizer.max_clusters = 100  # stratified: 2 to so many clusters are tried; needs the extra `sampling`
    config.tokenizer.percentile_records = 1000  # training recordings, drawn at random, that p1 and p99 come from
    config.tokenizer.merges_csv = False  # --stage=tokenizer also writes tokenizer/merges.csv

    config.prompt = ConfigDict()
    config.prompt.max_length = 1024  # tokens; longer ECGs are cut at their end
    config.prompt.text_vocab_size = 2000  # of the text tokenizer, where no pretrained one is used


def _set_model(config: ConfigDict) -> None:
    """The language model and its adaptation."""
    config.model = ConfigDict()
    config.model.pretrained = ""  # a Hugging Face folder or hub id; "": from scratch by the sizes below
    config.model.width = 256
    config.model.layers = 4
    config.model.heads = 4
    config.model.kv_heads = 4
    config.model.head_dim = 64
    config.model.mlp_width = 768
    config.model.rope_theta = 10_000.0
    config.model.dtype = "float32"  # computes
    config.model.param_dtype = "float32"  # stores
    # What a block keeps for the backward pass, a policy of jax.checkpoint_policies; "" keeps all, "nothing_saveable" nothing.
    config.model.remat = ""
    config.model.scan_layers = False  # one compiled block run over stacked parameters: deep models compile much faster
    config.model.vocab_multiple = 128  # the embedding's rows are filled up to a multiple, which mesh.tensor should divide
    config.model.train_new_embeddings = False  # with LoRA: train the ECG tokens' embeddings too (published: frozen)

    config.lora = ConfigDict()
    config.lora.rank = 0  # 0: all weights are trained
    config.lora.alpha = 32.0
    config.lora.dropout = 0.05
    config.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")  # those that a pretrained model has


def _set_run(config: ConfigDict) -> None:
    """Training, where it runs, what is exported and evaluated."""
    config.optim = ConfigDict()
    config.optim.preset = "ecg_byte"  # "ecg_byte": as published; "adamw": decoupled decay and the settings below
    config.optim.peak_rate = 1e-3  # adamw; the published schedule follows from the model's width
    config.optim.schedule = "cosine"  # adamw: "cosine" or "linear", to 0 at the last step
    config.optim.warmup = 500  # steps
    config.optim.b1 = 0.9
    config.optim.b2 = 0.99
    config.optim.weight_decay = 1e-2
    config.optim.clip_norm = 1.0

    config.train = ConfigDict()
    config.train.batch_size = 2  # rows a step, over all devices
    config.train.accumulate = 1  # parts of a batch that go through the model one after the other
    config.train.epochs = 1.0
    config.train.checkpoint_every = 1000  # steps; the validation scores are taken then too
    config.train.valid_batches = 50  # of the validation split, at most
    config.train.valid_answers = 0  # questions of the validation split that are answered for an exact match; 0: none
    config.train.patience = 0  # validations without a better loss until training ends; published: 5; 0: never
    config.train.patience_delta = 0.01  # nats by which a loss must be above the best one to count as worse
    config.train.keep_checkpoints = 2  # the newest; the one with the least validation loss is kept beside them
    config.train.wandb_project = ""  # Weights & Biases, with the extra `wandb`; "": off

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along each axis; -1 takes what the others leave
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.distributed = ConfigDict()
    config.distributed.initialize = False  # True: this process is one of several, started with the same command
    config.distributed.address = ""  # host:port of process 0; "", 0, -1: what jax finds (Slurm, TPU, GKE)
    config.distributed.processes = 0
    config.distributed.process = -1  # this one's number, from 0
    config.distributed.timeout = 300  # s to wait for the others at the start
    config.distributed.heartbeat = 30  # s without a sign of life until a process counts as dead and the others end

    config.export = ConfigDict()
    config.export.checkpoint = "last"  # "last", "best" (by validation loss) or a step
    config.export.adapter = False  # with LoRA: False merges it into the weights, True writes a PEFT adapter

    config.eval = ConfigDict()
    config.eval.split = "test"
    config.eval.checkpoint = "last"  # "last", "best" (by validation loss), a step, or a Hugging Face folder
    config.eval.batch_size = 16
    config.eval.max_new_tokens = 128
    config.eval.max_sequences = 0  # drawn at random; 0: all
    config.eval.temperature = 0.0  # 0: the likeliest token, always; above: drawn at random
    config.eval.top_k = 0  # drawn from so many likeliest tokens; 0: all
    config.eval.top_p = 1.0  # and of those from the fewest that hold this share of the probability
    config.eval.seeds = (0,)  # of the draws; several need a temperature above 0. Published: 0, 42, 123, 456, 789
    config.eval.perturb = ()  # robustness: "noise", "wander" (of the baseline), "dropout" (of leads), "blackout"
    config.eval.bootstrap = 1000  # resamples of the patients for the 95% intervals
    config.eval.bertscore_model = ""  # a Hugging Face folder (published: roberta-large); "": no BERTScore; extra `bertscore`

    config.attend = ConfigDict()
    config.attend.examples = ()  # ids of evaluated examples whose attention --stage=attend writes; (): the report's ten
    config.attend.layers = ()  # whose attention is averaged, counted from 0; (): all
    config.attend.heads = ()  # likewise


def use_published_model(config: ConfigDict) -> None:
    """The published choice: Llama 3.2 1B in bfloat16 with LoRA."""
    config.model.pretrained = "meta-llama/Llama-3.2-1B"
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "bfloat16"
    config.lora.rank = 16


def use_tiny_model(config: ConfigDict) -> None:
    """Small enough for minutes on a laptop: a model of 0.2 M parameters from scratch, one segment of each recording."""
    config.data.max_segments = 1
    config.tokenizer.num_merges = 1000
    config.prompt.max_length = 640
    config.prompt.text_vocab_size = 1000
    config.model.pretrained = ""
    config.model.dtype = "float32"
    config.model.param_dtype = "float32"
    config.model.width = 64
    config.model.layers = 2
    config.model.heads = 2
    config.model.kv_heads = 2
    config.model.head_dim = 32
    config.model.mlp_width = 192
    config.lora.rank = 0
    config.optim.preset = "adamw"
    config.optim.peak_rate = 3e-3
    config.optim.warmup = 20
    config.train.batch_size = 8
    config.train.epochs = 3.0
    config.eval.max_new_tokens = 64
