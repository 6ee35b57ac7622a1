"""Every field that a run has, with its unit and its default. Every other config is a short diff on this one."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()

    c.name = ""  # what reports call this run; each config sets it
    c.stages = ("prepare", "train", "predict", "audit", "report")  # what runs, in this order
    c.seed = 0  # of initialisation, of the order of training and of augmentation

    c.dataset = d = ml_collections.ConfigDict()
    d.name = "phantom"  # phantom | mimic | chexpert | nih | padchest | brax | table
    d.variant = "planted"  # the builder's own config, where it has several; the phantom's: see tfds_builders/cxr_phantom; of table, what you call your hospital
    d.raw_dir = ""  # folder of the release as downloaded; the phantom needs none
    d.mimic_iv_dir = ""  # folder of MIMIC-IV, where it does not lie in mimic's raw_dir
    d.data_dir = ""  # folder of the TFRecords; empty: TFDS's own default
    d.image_size = 256  # pixels a side that the model sees; records are always stored at 256
    d.aspect = "squash"  # squash | pad: how a picture that is not square becomes so, when records are written
    d.max_unreadable_share = 0.01  # of the release's images; prepare fails above it
    d.pictures = "released"  # released | dicom: which files of the release the images are read from
    d.storage = "png"  # png | raw: raw takes more disk, and no decoding when it is read
    d.beam_runner = ""  # DirectRunner, FlinkRunner, SparkRunner, DataflowRunner, …; empty: this process builds alone
    d.beam_options = ()  # of that runner, as its command line has them, such as ("--direct_num_workers=8",)
    # For table, images of your own below raw_dir (tfds_builders/cxr_table/README.md); what is not named is found by our own name, if the table has it
    d.table = ""  # .csv, .csv.gz, .tsv, .parquet or .xlsx, a row an image: a file below raw_dir, or a path of its own
    # "image_id=COLUMN", patient_id, study_id, path, split, race, ethnicity, sex, age (years), view, and any further "name=COLUMN" that is to be stored,
    # as text or number; "split=": there is none
    d.columns = ()
    d.findings = ()  # "FINDING=COLUMN", of 1, 0, -1 or empty; or "*=COLUMN" alone, a column that lists findings with | between
    d.words = ()  # "sex:W=F": what a word of the table means, in sex, view, race, ethnicity, split, a further column, or the list of findings
    d.open_data = False  # whether anybody may see single images of it
    # recorded: groups of the data set's own, as it has them. For mimic and chexpert: four_race | three_race |
    # first_admission | all (cxr_jax/data/race_rules.py); four_race unless told otherwise. For table, too, with a race_table of its words
    d.race_rule = "recorded"
    d.race_table = ""  # a table of one's own, laid over cxr_jax/data/race_groups.csv
    d.split_rule = "patient_hash"  # patient_hash | official
    d.split_fractions = (0.6, 0.1, 0.3)  # of patients, in train, validation, test; for patient_hash
    d.split_salt = "cxr_jax"  # another salt is another split
    d.views = ("AP", "PA")  # keep these views alone, by default the frontal ones; empty: all of them
    d.uncertain = "ignore"  # ignore | zeros | ones: what a finding recorded as -1 counts as
    d.unmentioned = "zeros"  # zeros | ignore: what a finding counts as that a report does not mention; if ignored, CheXpert's and MIMIC-CXR's No Finding has no negatives
    # host | device: where training images are kept once decoded. device: as uint8 in the memory of the accelerators, shared out over
    # them (cxr_jax/data/resident.py); an error where they do not fit
    d.cache = "host"
    d.device_cache_share = 0.75  # of a device's memory that images may take; training needs the rest
    # global | shard: of training. global: one permutation of all images. shard: those that a device holds are shuffled among
    # themselves, so that none moves between devices, and the order depends on how many there are. Empty: shard for device, else global
    d.order = ""
    d.host_cache_gib = 8.0  # decoded images held in memory, GiB; a larger split streams, in a block shuffle
    d.block_images = 1024  # images that a streamed block holds
    d.phantom = p = ml_collections.ConfigDict()
    p.patients = 1000  # of 1 to 4 images each
    p.seed = 0  # of the drawing; another seed is another population
    p.signal = 1.0  # strength of the texture that carries the latent; 0 draws none
    p.effect = 1.0  # multiplies the log-odds by which groups differ, in confounded, acquisition and shortcut
    p.underdiagnosed_share = 0.4  # of one group's images with a pathology, recorded as No Finding in underdiagnosed

    c.model = m = ml_collections.ConfigDict()
    m.growth = 32  # feature maps that a dense layer adds
    m.blocks = (6, 12, 24, 16)  # dense layers in each block: DenseNet-121
    m.stem = 64  # feature maps of the first convolution
    m.bottleneck = 4  # a dense layer's 1x1 convolution has bottleneck * growth maps
    m.stem_constant = False  # a second kernel in the stem, for a picture of ones; comes by itself with weights that need it
    # What training begins from: a state dict of torch (.safetensors, .pt, .pth, .tar), in torchvision's, TorchXRayVision's or CheXNet's
    # naming; or the folder of another run, whose best checkpoint it takes. Empty: weights drawn from the seed
    m.init_from = ""
    m.init_inputs = ""  # how such a network was fed, as extract.inputs
    m.dtype = "float32"  # float32 | bfloat16: of activations; parameters and statistics stay float32

    c.train = t = ml_collections.ConfigDict()
    t.targets = ("race",)  # race, findings, sex, or any other class-label attribute; several are several heads
    t.epochs = 10
    t.batch_size = 32  # images of a global batch, over all devices and processes
    # Parts of the network, from the images on, that stay as model.init_from has them, running statistics too: 1 is the stem, each further
    # one a dense block; all of them (model.blocks + 1) leave the heads to learn. 0: everything learns
    t.freeze = 0
    t.accumulate = 1  # parts that a batch is worked through in, for one update: less memory; batch statistics are then of a part
    t.learning_rate = 1e-4  # Adam's
    # The batch that this rate and Adam's own constants are meant for. A batch_size of k times as many images then has them scaled
    # (cxr_jax/training/optimizers.py), at most by k = 10; 0: they are taken as they are
    t.recipe_batch_size = 0
    t.schedule = "constant"  # constant | cosine
    t.warmup_epochs = 0.0  # of linear warm-up; for cosine
    t.statistics = "global"  # global | shard: whether batch statistics are of all devices' images, or of each device's by itself
    t.recompute = "readings"  # readings | bottlenecks: what the gradient computes again instead of keeping it; bottlenecks: those, too, one product more a layer
    t.evaluate_batch_size = 64  # images of a global batch when nothing is learnt
    t.log_every_steps = 10
    # What of each image the network is shown, in training and whenever it is run: a name of cxr_jax/data/perturbations.py and its strength, such as ("low_pass", 10.0),
    # or ("notch", 10.0, 20.0). (): all of it
    t.shown = ()

    t.objective = o = ml_collections.ConfigDict()
    # erm | reweight | resample | group_dro | dann | cdann | mmd | coral | jtt | domain_independent: cxr_jax/training/objectives.py. All but erm
    # and jtt read the attribute of training images; none that of an image that is judged
    o.name = "erm"
    o.attribute = "race"  # whose classes are the groups; also of train.select
    # group | group_label | independent: what reweight, resample and group_dro make count alike; of findings each has its own. independent: groups by
    # label count as they would if labels did not depend on groups, so that labels stay as common as they are; not for group_dro
    o.cells = "group_label"
    o.finding = "No Finding"  # resample by group_label: an image is drawn once for all its findings, by this one
    o.step = 0.01  # group_dro: of the exponent by which shares of cells grow
    o.strength = 1.0  # dann, cdann: of the reversed gradient; mmd, coral: of the distance between groups, beside the loss
    o.hidden = 256  # dann, cdann: units of the adversary
    o.first_epochs = 1  # jtt: of the first training, which says what is got wrong
    o.upweight = 5.0  # jtt: what that counts in the second one
    # auc | worst_group_auc | gap: by what the best epoch is told, on validation; macro AUC, that of the group that fares worst, or the smallest
    # error gap between groups among epochs whose macro AUC is at least train.auc_floor (cxr_jax/audit/validation.py)
    t.select = "auc"
    t.auc_floor = 0.7

    t.augment = a = ml_collections.ConfigDict()
    a.flip = False  # left-right; off because a heart has a side
    a.rotate_degrees = 0.0  # uniform in +- this
    a.zoom = 0.0  # uniform in 1 +- this
    a.shift = 0.0  # uniform in +- this share of the width
    # What acquisition changes, so that nothing can be read from it
    a.window = 0.0  # each end of the gray levels moves, uniform in +- this share of their range
    a.field_of_view = 0.0  # a crop, anywhere, of up to this share of the width, magnified
    a.exposure = 0.0  # the exponent of gray levels, 2 to the power of uniform in +- this

    c.checkpoint = k = ml_collections.ConfigDict()
    k.every_steps = 200  # and at the end of each epoch
    k.keep = 2  # the last K; the best by train.select is kept besides

    c.profile = ml_collections.ConfigDict()
    c.profile.steps = 0  # steps of training, after the first five, of which JAX's profiler keeps what took how long, in profile/; 0: none

    c.predict = r = ml_collections.ConfigDict()
    r.dataset = ""  # NAME[.VARIANT] of another data set to judge on; empty: the one trained on
    r.raw_dir = ""  # that data set's release folder
    r.mimic_iv_dir = ""  # and of MIMIC-IV
    r.splits = ("validation", "test")
    # NAME[.VARIANT] of other data sets that the model is judged on beside its own: what holds there, by whose thresholds (cxr_jax/audit/travel.py). All but the phantom must
    # have been built before, by the stage prepare of a config of their own
    r.datasets = ()
    r.checkpoint = "best"  # best | last

    c.extract = e = ml_collections.ConfigDict()
    # best | last: of this run; the folder of another run, whose best it takes; untrained: a network that has learnt nothing;
    # or a state dict of torch (.safetensors, .pt, .pth, .tar), in torchvision's, TorchXRayVision's or CheXNet's naming
    e.weights = "best"
    e.inputs = ""  # how such a network was fed: imagenet | xrv | gray; empty: imagenet where it takes 3 channels, xrv where 1
    e.depths = True  # also the mean of the maps after the stem and after each dense block
    e.untrained = True  # also what an untrained network of the same shape makes of the images: a control
    # NAME[.VARIANT] of other data sets whose test images are extracted too: probes that were fitted here are judged there as well. All but the phantom
    # must have been built before, by the stage prepare of a config of their own
    e.datasets = ()

    c.mitigate = g = ml_collections.ConfigDict()
    # What the stage mitigate, off by default, does to what training made; probes and the audit then judge that. Empty: no such stage
    # none: the reference, which does nothing and has probes read the same patients
    # leace | orthogonalise | null_space | prune: takes the attribute from the features, and so from what heads make of them (cxr_jax/probes/erasure.py)
    # dfr: heads fitted anew on validation, groups by label balanced (cxr_jax/probes/last_layer.py)
    # oracle | quadratic: erasure, and equalised_odds: calls by group and lot (cxr_jax/audit/equalised_odds.py), which need the attribute of
    # everyone who is judged
    g.method = ""
    g.attribute = "race"  # a class label
    # of patients of training (dfr: of validation), whom a method is fitted on; probes (thresholds) are then fitted on the others. On a method's own
    # patients a linear probe finds nothing by construction, whatever it would find on those of another hospital. 1: all of them, for both
    g.share = 0.5
    g.shrink = True  # leace, oracle, quadratic: shrink the covariance of features by how few patients it is of
    g.confounders = ("age", "sex", "view")  # orthogonalise: what classes are compared at equal values of
    g.penalty = 1e-2  # null_space, prune, dfr: of their logistic regression, as probe.penalties
    g.rounds = 20  # null_space: probes fitted one after the other, at most
    g.pruned_share = 0.1  # prune: of features
    # How erasure depends on how many patients it was fitted on: what it makes when fitted on half of them, a fourth, and so on, so many times, is read
    # by logistic regression beside the rest
    g.halvings = 0

    c.probe = p = ml_collections.ConfigDict()
    p.targets = ("race",)  # class labels that the features are asked for; age_band, by audit.age_bands, too
    p.probes = ("logistic_regression", "knn", "kmeans", "network")
    # labels shuffled by patient; an untrained network's features; the findings alone; age, sex and view alone; the
    # histogram of gray levels alone; scores: those of findings by the network's own heads alone; beside each stratum about as many images drawn at random; of features that something was
    # taken from, what they were before
    p.controls = ("shuffled", "untrained", "findings", "demographics", "histogram", "as_many", "unerased")
    p.strata = ("No Finding", "view")  # fitted and judged anew within images that have this finding, or in each class of this label
    p.seed = 0  # of shuffling, clustering, the network and resampling
    p.embeddings = ""  # a table or .npy file of your own vectors, in the place of extracted features; see configs/probe.py
    p.table = ""  # the table of their images, where it is another file
    p.columns = "feature_"  # how the names of their columns begin; or the name of one column of lists
    p.penalties = (1e-4, 1e2, 16)  # of logistic regression: least, greatest, how many; loss a row + penalty/2 * |weights|^2
    p.refits = 100  # of the chosen logistic regression on resampled training patients: how steady its weights are
    p.neighbours = (1, 5, 15, 50, 100)
    p.metric = "l2"  # l2 | cosine
    p.clusters = (2, 4, 8, 16)
    p.restarts = 10  # of K-means, the best by inertia kept
    p.permutations = 2000  # of labels among patients: the null of what clusters and labels have in common; no p is below 1 by as many
    p.network = n = ml_collections.ConfigDict()
    n.hidden = 64  # units
    n.learning_rate = 1e-3  # Adam's
    n.weight_decay = 1e-2  # decoupled
    n.batch_size = 128
    n.epochs = 100  # at most
    n.patience = 10  # epochs without a lower loss in validation, then it stops

    c.mechanism = m = ml_collections.ConfigDict()
    # The stage mechanism: what the network of extract.weights reads. By its own heads, and by the logistic regressions of the stage probe, of labels that it has no head for
    m.watched = 5  # of the features that weigh most in each such regression, how many are followed along the series
    # Test images changed by each perturbation (cxr_jax/data/perturbations.py) at each of these strengths; (): not by that one. Radii are in cycles per image
    m.series = s = ml_collections.ConfigDict()
    s.low_pass = (2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0, 96.0)
    s.high_pass = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 32.0, 64.0)
    s.band_pass = ((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 128.0))
    s.notch = ((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 128.0))
    # As a study published them (Gichoya et al. 2022), and, above, as it meant them: half of these, as radii
    s.published_low_pass = ()
    s.published_high_pass = ()
    s.published_clipped = (0.6, 1.0)
    s.down_sampled = (8, 16, 32, 64, 128)  # pixels a side
    s.blurred = (1.0, 2.0, 4.0, 8.0)  # standard deviations, pixels of 256
    s.noisy = (4.0, 8.0, 16.0, 32.0)  # standard deviations, gray levels
    s.clipped = ((0.0, 0.6), (0.0, 0.8), (0.2, 1.0), (0.4, 1.0))  # shares of the gray levels
    s.histogram_matched = (1.0,)  # share of the way to the histogram of training images
    s.cell_alone = (0, 1, 2, 3, 4, 5, 6, 7, 8)  # of 3×3, by rows
    s.cell_out = (0, 1, 2, 3, 4, 5, 6, 7, 8)
    s.middle_alone = (0.5, 0.7, 0.9)  # side of the box, share of the image's
    s.border_alone = (0.5, 0.7, 0.9)
    s.attacked = (0.25, 0.5, 1.0, 2.0)  # gray levels (FGSM)

    # How much of what is told goes with how images are acquired, or with what else is recorded (cxr_jax/audit/acquisition.py): columns of the cohort, of those of a group as many
    # as are recorded; label_FINDING for findings (findings alone: all of them); measured_… of the picture itself (cxr_jax/mechanism/acquisition.py). (): not asked
    m.factors = f = ml_collections.ConfigDict()
    f.view = ("view",)
    f.machine = ("manufacturer", "portable")
    f.exposure = ("measured_exposure", "measured_contrast", "measured_black", "measured_white")
    f.recorded_exposure = ("exposure", "window_center", "window_width")
    f.field_of_view = ("measured_field_of_view",)
    f.picture_size = ("original_width", "original_height", "pixel_spacing_x", "pixel_spacing_y")
    f.age = ("age",)
    f.sex = ("sex",)
    f.findings = ("findings",)
    f.body = ("height", "weight", "bmi")
    # Where it looks (cxr_jax/mechanism/maps.py): maps of one image each of so many test patients, drawn at random; 0: none
    m.maps = a = ml_collections.ConfigDict()
    a.patients = 0
    a.attribute = "race"  # by whose groups maps are averaged; sex where it is not recorded
    a.findings = ("No Finding", "Cardiomegaly")  # that are asked beside every class label
    a.methods = ("grad_cam", "integrated_gradients", "occlusion")
    a.steps = 32  # of integrated gradients
    a.box, a.stride = 64, 32  # pixels of 256, of what is taken out in occlusion
    a.cell, a.shares = 16, 8  # pixels of 256 of what is taken out in deletion, and in how many shares
    a.batch_size = 16
    a.shuffled_labels = False  # also train a network as this one was, on labels dealt anew among images: what maps look like that are of nothing learnt. Takes as long as the training

    c.audit = u = ml_collections.ConfigDict()
    u.attributes = ("race", "sex", "age_band", "view")
    u.intersections = ("race*sex", "race*sex*age_band")  # of attributes above, as far as they are recorded
    # what others are to have in common with a group, besides labels, for a gap that case mix does not explain; where too few have, the last is let go
    # first, and so on; of what is recorded (cxr_jax/audit/case_mix.py). (): no such gaps
    u.case_mix = ("view", "age_band", "sex", "race")
    u.reference = ()  # groups that others are compared with, such as ("race=White",); of other attributes the largest
    u.splits = ("test",)
    u.truth = "recorded"  # recorded | true: what predictions are judged by; true: of findings whose truth is known
    # youden | f1 | sensitivity:0.9 | specificity:0.9 | fixed:0.5: the score from which an image is called, for each class;
    # chosen on the validation split, or by cross-fitting over patients where there is none (cxr_jax/audit/thresholds.py)
    u.threshold = "youden"
    u.threshold_by = ""  # view, or another attribute: each of its groups has thresholds of its own
    u.interval = "bca"  # bca | percentile | analytic (cxr_jax/audit/estimates.py)
    u.age_bands = (0, 20, 40, 60, 80)  # lower edges, years: 20 to below 40 is the band 20-39
    u.level = 0.95  # of every interval
    u.replicates = 2000  # of the patient bootstrap
    u.seed = 0
    # Predictions of your own, from any model, in the place of ours; see configs/audit.py. The other fields are for names that it does
    # not find by itself, or of which two would do.
    u.predictions = ""  # a .csv, .csv.gz, .tsv or .parquet file; empty: what the workdir has
    u.columns = ()  # "image_id=COLUMN", patient_id, study_id, split, race, sex, age, view, or any of attributes; "split=": there is none
    u.label = ""  # the column of a text label, whose classes exclude one another
    u.labels = ()  # "FINDING=COLUMN", of 1, 0 or empty
    u.scores = ()  # "CLASS=COLUMN", also of a finding
    # What features and scores give away about patients (cxr_jax/audit/leakage.py): whether they are found again, and whether it is told who was trained on, for
    # which predict.splits must have train
    u.leakage = False
    u.told_by_images = ""  # with audit.leakage: the run of a network that was trained to tell probe.targets from the same images
    u.min_patients = 11  # cells with fewer are suppressed in what is written for sharing

    return c


# What the size tokens of a config's argument stand for, as diffs on the above (experiment.apply_argument).
SIZES = {
    # The published recipe: the base as it is.
    "paper": {},
    # What the phantom gets unless told otherwise: DenseNet-121 itself, at a quarter of the resolution and few epochs, since
    # a CPU takes hours over the recipe. What it lacks is steps, hence the small batches; at higher rates not every seed
    # learns in time.
    "reduced": {
        "dataset.image_size": 64,
        "train.epochs": 3,
        "train.batch_size": 8,
        "train.learning_rate": 5e-4,
        "train.schedule": "cosine",
        "train.warmup_epochs": 0.3,
    },
    # Everything small, the network too: about a minute on a CPU, to see that a config runs and what its report looks like.
    "tiny": {
        "dataset.image_size": 64,
        "dataset.phantom.patients": 400,
        "model.growth": 12,
        "model.blocks": (2, 2, 2),
        "model.stem": 16,
        "train.epochs": 10,
        "train.batch_size": 16,
        "train.learning_rate": 3e-3,
        "train.schedule": "cosine",
        "train.warmup_epochs": 0.5,
    },
}
