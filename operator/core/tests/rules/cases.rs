//! The cases: what is changed in the minimal job (`support::assign`), and what is expected.

/// Assigns a mixture of these sources as the data.
macro_rules! mixture {
    ($sources:expr) => {
        concat!("spec.data = {'mixture': {'sources': [", $sources, "]}}")
    };
}

/// Assigns a mixture of pairs with these further fields, and others.
macro_rules! mixed_pairs {
    ($fields:expr) => {
        mixture!(concat!(
            "{'name': 'a', 'webdataset': {'shards': ['/a.tar'], ",
            $fields,
            "}}, {'name': 'b', 'webdataset': {'shards': ['/b.tar']}}"
        ))
    };
}

/// Assigns documents of MMC4 with these fields as the data, and further fields of `spec.data`.
macro_rules! mmc4 {
    ($fields:expr) => {
        concat!("spec.data = {'mmc4': {", $fields, "}}")
    };
    ($fields:expr, $more:expr) => {
        concat!("spec.data = {'mmc4': {", $fields, "}, ", $more, "}")
    };
}

/// A valid shape in which later fields of `vision` replace earlier ones.
macro_rules! shape {
    ($vision:literal) => {
        concat!(
            "spec.model = {'shape': {'vision': {'imageSize': 16, 'patchSize': 8, 'width': 8, 'layers': 1, 'heads': 1, ",
            $vision,
            "}, 'text': {'width': 8, 'layers': 1, 'heads': 1, 'contextLength': 16}, 'embedDim': 8, 'poolHeads': 1}}"
        )
    };
}

macro_rules! text_shape {
    ($text:literal) => {
        concat!(
            "spec.model = {'shape': {'vision': {'imageSize': 16, 'patchSize': 8, 'width': 8, 'layers': 1, 'heads': 1}, ",
            "'text': {'width': 8, 'layers': 1, 'heads': 1, 'contextLength': 16, ",
            $text,
            "}, 'embedDim': 8, 'poolHeads': 1}}"
        )
    };
}

macro_rules! pool_shape {
    ($pool:literal) => {
        concat!(
            "spec.model = {'shape': {'vision': {'imageSize': 16, 'patchSize': 8, 'width': 8, 'layers': 1, 'heads': 1}, ",
            "'text': {'width': 8, 'layers': 1, 'heads': 1, 'contextLength': 16}, 'embedDim': 8, ",
            $pool,
            "}}"
        )
    };
}

/// The container `worker` with one environment variable.
macro_rules! variable {
    ($name:literal) => {
        concat!("spec.workers.template.spec.containers = [{'name': 'worker', 'env': [{'name': '", $name, "', 'value': '1'}]}]")
    };
}

/// One rule broken: the change, the field that is named, a part of the message.
pub(crate) const BROKEN: &[(&str, &str, &str)] = &[
    (
        "spec.serviceAccount = {}; spec.workers.template.spec = {'serviceAccountName': 'other', 'containers': [{'name': 'worker'}]}",
        "spec.serviceAccount",
        "must be left out when the template names another account",
    ),
    ("spec.serviceAccount = {'annotations': {'a': 1}}", "spec.serviceAccount.annotations.a", "must be a string"),
    // The object.
    ("apiVersion = 'lcl.dev/v2'", "apiVersion", "must be `lcl.dev/v1alpha1`"),
    ("apiVersion = delete", "apiVersion", "must be given"),
    ("kind = 'LclTrainingJob'", "kind", "must be `LCLTrainingJob`"),
    ("specs = {}", "specs", "did you mean `spec`?"),
    ("metadata.name = delete", "metadata.name", "must be given"),
    ("metadata.name = 7", "metadata.name", "must be a string"),
    ("metadata.name = 'Emoji'", "metadata.name", "must begin with a letter"),
    ("metadata.name = '1st'", "metadata.name", "must begin with a letter"),
    ("metadata.name = 'a.b'", "metadata.name", "must begin with a letter"),
    ("metadata.name = 'a-'", "metadata.name", "not end in '-'"),
    ("metadata.name = 'abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz'", "metadata.name", "at most 51 characters"),
    ("metadata.labels = {'a': 'b c'}", "metadata.labels.a", "must be empty or at most 63"),
    ("metadata.labels = {'a b': 'c'}", "metadata.labels.a b", "the key must be"),
    ("metadata.labels = {'a': 1}", "metadata.labels.a", "must be a string (put it in quotes)"),
    ("metadata.annotations = {'a': true}", "metadata.annotations.a", "must be a string (put it in quotes)"),
    ("metadata.lables = {'a': 'b'}", "metadata.lables", "did you mean `labels`?"),
    ("spec.model = delete", "spec.model", "must be given"),
    ("spec.data = delete", "spec.data", "must be given"),
    ("spec.optimization = delete", "spec.optimization", "must be given"),
    ("spec.checkpoint = delete", "spec.checkpoint", "must be given"),
    // Model.
    ("spec.model.preset = delete", "spec.model", "exactly one of preset and shape must be given"),
    ("spec.model.preset = 'vit-b-64'", "spec.model.preset", "must be one of vit-b-16-laion, vit-b-32-laion"),
    (WITH_PRESET_AND_SHAPE, "spec.model", "exactly one of preset and shape must be given"),
    (shape!("'patchSize': 5"), "spec.model.shape.vision.patchSize", "must divide imageSize"),
    (shape!("'heads': 3"), "spec.model.shape.vision.heads", "must divide width"),
    (shape!("'imageSize': 0"), "spec.model.shape.vision.imageSize", "must be at least 1"),
    (shape!("'heads': 1025, 'width': 1025"), "spec.model.shape.vision.heads", "must be at most 1024"),
    (text_shape!("'heads': 3"), "spec.model.shape.text.heads", "must divide width"),
    (text_shape!("'contextLength': 8"), "spec.model.shape.text.contextLength", "must exceed the tokens of one image"),
    (pool_shape!("'poolHeads': 3"), "spec.model.shape.poolHeads", "must divide embedDim"),
    (text_shape!("'width': 16"), "spec.model.shape.text.width", "must equal embedDim"),
    ("spec.model.dropPath = 1.0", "spec.model.dropPath", "must be at most 0.99"),
    ("spec.model.dropPath = -0.1", "spec.model.dropPath", "must be at least 0"),
    ("spec.model.layerScale = -1e-5", "spec.model.layerScale", "must be at least 0"),
    ("spec.model.precision = 'float16'", "spec.model.precision", "must be one of Float32, Bfloat16"),
    ("spec.model.activationCheckpointing = 'yes'", "spec.model.activationCheckpointing", "must be true or false"),
    ("spec.model.objective = {}", "spec.model.objective", "exactly one of lcl and clip must be given"),
    ("spec.model.objective = {'lcl': {}, 'clip': {}}", "spec.model.objective", "exactly one of lcl and clip must be given"),
    ("spec.model.objective.lcl.generationWeight = -1", "spec.model.objective.lcl.generationWeight", "must be at least 0"),
    (
        "spec.model.objective = {'lcl': {'generationWeight': 0, 'contrastiveWeight': 0}}",
        "spec.model.objective.lcl",
        "at least one of generationWeight and contrastiveWeight must be positive",
    ),
    // Data.
    ("spec.data = {}", "spec.data", "exactly one data source must be given"),
    ("spec.data.webdataset = {}", "spec.data.webdataset.shards", "must be given"),
    ("spec.data = {}", "spec.data", "exactly one data source must be given"),
    (
        mmc4!("'shards': ['/m.jsonl'], 'images': {'folder': '/i'}", "'webdataset': {'shards': ['/a.tar']}"),
        "spec.data",
        "exactly one data source",
    ),
    (mmc4!("'shards': ['/m.jsonl']"), "spec.data.mmc4.images", "must be given"),
    (mmc4!("'shards': ['/m.jsonl'], 'images': {}"), "spec.data.mmc4.images", "exactly one of folder and shards must be given"),
    (
        mmc4!("'shards': ['/m.jsonl'], 'images': {'folder': '/i', 'shards': ['/i.tar']}"),
        "spec.data.mmc4.images",
        "exactly one of folder and shards must be given",
    ),
    (
        mmc4!("'shards': ['/m.jsonl'], 'images': {'shards': ['/i.tar'], 'layout': 'ByShard'}"),
        "spec.data.mmc4.images.layout",
        "must be left out with shards",
    ),
    (mmc4!("'shards': ['/m.jsonl'], 'images': {'shards': ['i.tar']}"), "spec.data.mmc4.images.shards[0]", "must be an absolute path"),
    (mmc4!("'shards': ['/m.jsonl'], 'images': {'shards': ['/i{.tar']}"), "spec.data.mmc4.images.shards[0]", "has no `}`"),
    (
        mixture!("{'name': 'a', 'mmc4': {'shards': ['/m.jsonl'], 'images': {}}}, {'name': 'b', 'webdataset': {'shards': ['/b']}}"),
        "spec.data.mixture.sources[0].mmc4.images",
        "exactly one of folder and shards must be given",
    ),
    (
        mixture!(
            "{'name': 'a', 'mmc4': {'shards': ['/m.jsonl'], 'images': {'shards': ['/i.tar'], 'layout': 'ByShard'}}}, {'name': 'b', 'webdataset': {'shards': ['/b']}}"
        ),
        "spec.data.mixture.sources[0].mmc4.images.layout",
        "must be left out with shards",
    ),
    (mmc4!("'shards': ['m.jsonl'], 'images': {'folder': '/i'}"), "spec.data.mmc4.shards[0]", "must be an absolute path"),
    (mmc4!("'shards': ['/m_{0..3.jsonl'], 'images': {'folder': '/i'}"), "spec.data.mmc4.shards[0]", "has no `}`"),
    (mmc4!("'shards': ['/m.jsonl'], 'images': {'folder': 'i'}"), "spec.data.mmc4.images.folder", "must be an absolute path"),
    (
        mmc4!("'shards': ['/m.jsonl'], 'images': {'folder': '/i', 'layout': 'tree'}"),
        "spec.data.mmc4.images.layout",
        "must be one of Flat, ByShard",
    ),
    (
        mmc4!("'shards': ['/m.jsonl'], 'images': {'folder': '/i'}, 'minSimilarity': 1.5"),
        "spec.data.mmc4.minSimilarity",
        "must be at most 1",
    ),
    (mmc4!("'shards': ['/m.jsonl'], 'images': {'folder': '/i'}, 'maxImages': 0"), "spec.data.mmc4.maxImages", "must be at least 1"),
    (
        concat!(mmc4!("'shards': ['/m.jsonl'], 'images': {'folder': '/i'}"), "; spec.model.objective = {'clip': {}}"),
        "spec.model.objective",
        "must be lcl when the data are documents",
    ),
    (mixture!("{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}"), "spec.data.mixture.sources", "at least 2 entries"),
    (
        mixture!("{'name': 'b'}, {'name': 'a', 'webdataset': {'shards': ['/a.tar']}}"),
        "spec.data.mixture.sources[0]",
        "exactly one data source must be given: webdataset, mmc4 or obelics",
    ),
    (
        mixture!("{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}, {'name': 'a', 'webdataset': {'shards': ['/b.tar']}}"),
        "spec.data.mixture.sources[1].name",
        "must differ from",
    ),
    (
        mixture!("{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}, {'name': 'B c', 'webdataset': {'shards': ['/b.tar']}}"),
        "spec.data.mixture.sources[1].name",
        "must hold only lower-case letters",
    ),
    (
        mixture!("{'name': 'a', 'weight': 0, 'webdataset': {'shards': ['/a.tar']}}, {'name': 'b', 'webdataset': {'shards': ['/b.tar']}}"),
        "spec.data.mixture.sources[0].weight",
        "must be at least 1",
    ),
    (
        mixture!(
            "{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}, {'name': 'b', 'obelics': {'shards': ['/b'], 'images': ['/{0.tar']}}"
        ),
        "spec.data.mixture.sources[1].obelics.images[0]",
        "has no `}`",
    ),
    (
        mixture!(
            "{'name': 'a', 'webdataset': {'shards': ['/a.tar'], 'captionKeys': ['png']}}, {'name': 'b', 'webdataset': {'shards': ['/b.tar']}}"
        ),
        "spec.data.mixture.sources[0].webdataset.captionKeys",
        "must not share a key with imageKeys",
    ),
    (
        mixture!(
            "{'name': 'a', 'webdataset': {'shards': ['/a.tar'], 'captionKeys': ['en.txt'], 'keySeparator': 'LastDot'}}, \
             {'name': 'b', 'webdataset': {'shards': ['/b.tar']}}"
        ),
        "spec.data.mixture.sources[0].webdataset.captionKeys",
        "must hold no dot when keySeparator is LastDot",
    ),
    (
        mixture!(
            "{'name': 'a', 'webdataset': {'shards': ['/a.tar'], 'imageKeys': ['seg.png'], 'keySeparator': 'LastDot'}}, \
             {'name': 'b', 'webdataset': {'shards': ['/b.tar']}}"
        ),
        "spec.data.mixture.sources[0].webdataset.imageKeys",
        "must hold no dot when keySeparator is LastDot",
    ),
    (
        concat!(
            mixture!("{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}, {'name': 'b', 'obelics': {'shards': ['/b'], 'images': ['/c']}}"),
            "; spec.model.objective = {'clip': {}}"
        ),
        "spec.model.objective",
        "must be lcl when the data are documents",
    ),
    ("spec.data = {'obelics': {'shards': ['/o.parquet']}}", "spec.data.obelics.images", "must be given"),
    ("spec.data = {'obelics': {'shards': ['/o.parquet'], 'images': ['/i-[0.tar']}}", "spec.data.obelics.images[0]", "has no `]`"),
    ("spec.data = {'obelics': {'shards': [], 'images': ['/i.tar']}}", "spec.data.obelics.shards", "at least 1 entries"),
    (
        "spec.data = {'obelics': {'shards': ['/o.parquet'], 'images': ['/i.tar'], 'maxImages': 65}}",
        "spec.data.obelics.maxImages",
        "must be at most 64",
    ),
    ("spec.data.webdataset.shards = []", "spec.data.webdataset.shards", "at least 1 entries"),
    ("spec.data.webdataset.shards = ['a.tar']", "spec.data.webdataset.shards[0]", "must be an absolute path"),
    ("spec.data.webdataset.shards = ['/a.tar', '/../b.tar']", "spec.data.webdataset.shards[1]", "without a `..` component"),
    ("spec.data.webdataset.shards = ['/a.tar', 7]", "spec.data.webdataset.shards[1]", "must be a string"),
    ("spec.data.webdataset.shards = ['/a.tar', '/d/{000..011.tar']", "spec.data.webdataset.shards[1]", "the `{` at character 4 has no `}`"),
    ("spec.data.webdataset.shards = ['/d/000..011}.tar']", "spec.data.webdataset.shards[0]", "has no `{` before it"),
    ("spec.data.webdataset.shards = ['/d/{000.011}.tar']", "spec.data.webdataset.shards[0]", "nor a range such as {000..011}"),
    ("spec.data.webdataset.shards = ['/d/[ab.tar']", "spec.data.webdataset.shards[0]", "has no `]`"),
    ("spec.data.webdataset.shards = ['/d/{a,b}.txt']", "spec.data.webdataset.shards[0]", "must be given by its name"),
    ("spec.data.webdataset.shards = ['/d/{0..99999999}.tar']", "spec.data.webdataset.shards[0]", "more than 10000000 paths"),
    ("spec.data.webdataset.imageKeys = []", "spec.data.webdataset.imageKeys", "at least 1 entries"),
    ("spec.data.webdataset.imageKeys = ['jpg', '.png']", "spec.data.webdataset.imageKeys[1]", "without its first dot"),
    ("spec.data.webdataset.imageKeys = ['JPG']", "spec.data.webdataset.imageKeys[0]", "in lower case"),
    ("spec.data.webdataset.captionKeys = ['txt,caption']", "spec.data.webdataset.captionKeys[0]", "such as jpg or seg.png"),
    ("spec.data.webdataset.captionKeys = ['json', 'png']", "spec.data.webdataset.captionKeys", "must not share a key with imageKeys"),
    (
        "spec.data.webdataset.imageKeys = ['seg.png']; spec.data.webdataset.keySeparator = 'LastDot'",
        "spec.data.webdataset.imageKeys",
        "must hold no dot when keySeparator is LastDot",
    ),
    (
        "spec.data.webdataset.captionKeys = ['en.txt']; spec.data.webdataset.keySeparator = 'LastDot'",
        "spec.data.webdataset.captionKeys",
        "must hold no dot when keySeparator is LastDot",
    ),
    (
        "spec.data.webdataset.captions = [{'key': 'txt'}]; spec.data.webdataset.captionKeys = ['caption']",
        "spec.data.webdataset.captionKeys",
        "must be left out when captions is given",
    ),
    ("spec.data.webdataset.captions = []", "spec.data.webdataset.captions", "at least 1 entries"),
    ("spec.data.webdataset.captions = [{}]", "spec.data.webdataset.captions[0]", "exactly one of key and json must be given"),
    (
        "spec.data.webdataset.captions = [{'key': 'txt', 'json': 'caption'}]",
        "spec.data.webdataset.captions[0]",
        "exactly one of key and json must be given",
    ),
    ("spec.data.webdataset.captions = [{'key': 'TXT'}]", "spec.data.webdataset.captions[0].key", "in lower case"),
    (
        "spec.data.webdataset.captions = [{'json': 'meta..alt'}]",
        "spec.data.webdataset.captions[0].json",
        "such as caption or meta.alt_text",
    ),
    ("spec.data.webdataset.captions = [{'key': 'txt', 'weight': 0}]", "spec.data.webdataset.captions[0].weight", "must be at least 1"),
    ("spec.data.webdataset.captions = [{'key': 'png'}]", "spec.data.webdataset.captions", "must not share a key with imageKeys"),
    (
        "spec.data.webdataset.captions = [{'json': 'caption'}]; spec.data.webdataset.imageKeys = ['json']",
        "spec.data.webdataset.captions",
        "must not come from json when imageKeys has that key",
    ),
    (
        "spec.data.webdataset.captions = [{'key': 'en.txt'}]; spec.data.webdataset.keySeparator = 'LastDot'",
        "spec.data.webdataset.captions",
        "must hold no dot when keySeparator is LastDot",
    ),
    (
        mixed_pairs!("'captionKeys': ['a'], 'captions': [{'key': 'txt'}]"),
        "spec.data.mixture.sources[0].webdataset.captionKeys",
        "must be left out",
    ),
    (mixed_pairs!("'captions': [{'weight': 2}]"), "spec.data.mixture.sources[0].webdataset.captions[0]", "exactly one of key and json"),
    (mixed_pairs!("'captions': [{'key': 'jpg'}]"), "spec.data.mixture.sources[0].webdataset.captions", "must not share a key"),
    (
        mixed_pairs!("'captions': [{'json': 'a'}], 'imageKeys': ['json']"),
        "spec.data.mixture.sources[0].webdataset.captions",
        "must not come from json",
    ),
    (
        mixed_pairs!("'captions': [{'key': 'en.txt'}], 'keySeparator': 'LastDot'"),
        "spec.data.mixture.sources[0].webdataset.captions",
        "must hold no dot",
    ),
    ("spec.data.webdataset.filter = ''", "spec.data.webdataset.filter", "at least 1 characters"),
    ("spec.data.webdataset.filter = 'similarity >='", "spec.data.webdataset.filter", "must be an expression in CEL: at character 14"),
    ("spec.data.webdataset.filter = 'lower(NSFW) == \\\"a\\\"'", "spec.data.webdataset.filter", "there is no `lower`"),
    ("spec.data.webdataset.filter = 'width + 1'", "spec.data.webdataset.filter", "the expression must be true or false, and is a number"),
    ("spec.data.webdataset.filter = 'has(similarity)'", "spec.data.webdataset.filter", "as in has(json.similarity)"),
    (mixed_pairs!("'filter': 'true'"), "spec.data.mixture.sources[0].webdataset.filter", "must name a field of the sample's json"),
    (
        mixture!(
            "{'name': 'a', 'webdataset': {'shards': ['/a.tar'], 'layout': 'Documents', 'keySeparator': 'LastDot'}}, \
             {'name': 'b', 'webdataset': {'shards': ['/b.tar']}}"
        ),
        "spec.data.mixture.sources[0].webdataset.keySeparator",
        "must be FirstDot when layout is Documents",
    ),
    (
        mixture!(
            "{'name': 'a', 'webdataset': {'shards': ['/a.tar'], 'maxImages': 6}}, {'name': 'b', 'webdataset': {'shards': ['/b.tar']}}"
        ),
        "spec.data.mixture.sources[0].webdataset.maxImages",
        "must not be given when layout is Pairs",
    ),
    ("spec.data.webdataset.layout = 'tree'", "spec.data.webdataset.layout", "must be one of Pairs, Documents"),
    (
        "spec.data.webdataset.layout = 'Documents'; spec.data.webdataset.filter = 'width > 9'",
        "spec.data.webdataset.filter",
        "must not be given when layout is Documents",
    ),
    (
        "spec.data.webdataset.layout = 'Documents'; spec.data.webdataset.captions = [{'key': 'txt'}]",
        "spec.data.webdataset.captions",
        "must not be given when layout is Documents",
    ),
    (
        mixed_pairs!("'layout': 'Documents', 'filter': 'width > 9'"),
        "spec.data.mixture.sources[0].webdataset.filter",
        "must not be given when layout is Documents",
    ),
    (
        mixed_pairs!("'layout': 'Documents', 'captions': [{'key': 'txt'}]"),
        "spec.data.mixture.sources[0].webdataset.captions",
        "must not be given when layout is Documents",
    ),
    (
        "spec.data.webdataset.layout = 'Documents'; spec.data.webdataset.keySeparator = 'LastDot'",
        "spec.data.webdataset.keySeparator",
        "must be FirstDot when layout is Documents",
    ),
    ("spec.data.webdataset.maxImages = 6", "spec.data.webdataset.maxImages", "must not be given when layout is Pairs"),
    (
        "spec.data.webdataset.layout = 'Documents'; spec.data.webdataset.maxImages = 0",
        "spec.data.webdataset.maxImages",
        "must be at least 1",
    ),
    (
        "spec.data.webdataset.layout = 'Documents'; spec.model.objective = {'clip': {}}",
        "spec.model.objective",
        "must be lcl when the data are documents",
    ),
    (
        concat!(
            mixture!(
                "{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}, {'name': 'b', 'webdataset': {'shards': ['/b'], 'layout': 'Documents'}}"
            ),
            "; spec.model.objective = {'clip': {}}"
        ),
        "spec.model.objective",
        "must be lcl when the data are documents",
    ),
    ("spec.data.webdataset.keySeparator = 'middle'", "spec.data.webdataset.keySeparator", "must be one of FirstDot, LastDot"),
    ("spec.data.indexPath = 'index'", "spec.data.indexPath", "must be an absolute path"),
    ("spec.data.indexPath = 'ftp://a/b'", "spec.data.indexPath", "or a URI such as s3://bucket/a.tar"),
    ("spec.data.webdataset.shards = ['s3://bucket']", "spec.data.webdataset.shards[0]", "or a URI such as s3://bucket/a.tar"),
    ("spec.data.webdataset.shards = ['s3://bucket/a/../b.tar']", "spec.data.webdataset.shards[0]", "has a part `.` or `..`"),
    ("spec.data.webdataset.shards = ['https://host:99999/b.tar']", "spec.data.webdataset.shards[0]", "a port of at most 65535"),
    ("spec.data.cache = {'path': 'a'}", "spec.data.cache.path", "must be an absolute path"),
    ("spec.data.cache = {'sizeGib': 0}", "spec.data.cache.sizeGib", "must be at least 1"),
    ("spec.data.imageFirstProbability = 1.1", "spec.data.imageFirstProbability", "must be at most 1"),
    ("spec.data.maxBadFraction = 1.1", "spec.data.maxBadFraction", "must be at most 1"),
    ("spec.data.shuffle = {'lanes': 0}", "spec.data.shuffle.lanes", "must be at least 1"),
    ("spec.data.shuffle = {'window': 0}", "spec.data.shuffle.window", "must be at least 1"),
    ("spec.data.augmentation.scale = [0.9]", "spec.data.augmentation.scale", "at least 2 entries"),
    ("spec.data.augmentation.scale = [0.9, 0.8]", "spec.data.augmentation.scale", "must be two ascending numbers"),
    ("spec.data.augmentation.ratio = [0, 1]", "spec.data.augmentation.ratio[0]", "at least 0.001"),
    ("spec.data.augmentation.scale = [0, 1]", "spec.data.augmentation.scale[0]", "must be at least 0.000001"),
    ("spec.data.augmentation.ratio = [1.5, 1]", "spec.data.augmentation.ratio", "must be two ascending positive numbers"),
    ("spec.data.threads = 0", "spec.data.threads", "must be at least 1"),
    ("spec.data.prefetch = 0", "spec.data.prefetch", "must be at least 1"),
    ("spec.data.prefetch = 1.5", "spec.data.prefetch", "must be a whole number"),
    // Optimization.
    ("spec.optimization.steps = delete", "spec.optimization.steps", "must be given"),
    ("spec.optimization.steps = 0", "spec.optimization.steps", "must be at least 1"),
    ("spec.optimization.steps = '100'", "spec.optimization.steps", "must be a whole number"),
    ("spec.optimization.globalBatchSize = delete", "spec.optimization.globalBatchSize", "must be given"),
    ("spec.optimization.microBatchSize = 0", "spec.optimization.microBatchSize", "must be at least 1"),
    ("spec.optimization.microBatchSize = 9", "spec.optimization.microBatchSize", "must not exceed optimization.globalBatchSize"),
    ("spec.optimization.learningRate = 0", "spec.optimization.learningRate", "must be at least"),
    ("spec.optimization.learningRate = '1e-3'", "spec.optimization.learningRate", "must be a number"),
    ("spec.optimization.weightDecay = -0.1", "spec.optimization.weightDecay", "must be at least 0"),
    ("spec.optimization.betas = [0.9, 1]", "spec.optimization.betas[1]", "must be at most 0.999999999"),
    ("spec.optimization.epsilon = 0", "spec.optimization.epsilon", "must be at least"),
    ("spec.optimization.schedule = {}", "spec.optimization.schedule", "exactly one of cosine and constant must be given"),
    (
        "spec.optimization.schedule = {'cosine': {'warmupSteps': 101}}",
        "spec.optimization.schedule.cosine.warmupSteps",
        "must not exceed optimization.steps",
    ),
    (
        "spec.optimization.schedule = {'constant': {'warmupSteps': 101}}",
        "spec.optimization.schedule.constant.warmupSteps",
        "must not exceed optimization.steps",
    ),
    ("spec.optimization.schedule.constant.warmupSteps = -1", "spec.optimization.schedule.constant.warmupSteps", "at least 0"),
    ("spec.optimization.gradientClip = 0", "spec.optimization.gradientClip", "must be at least"),
    ("spec.optimization.normalization = 'local'", "spec.optimization.normalization", "must be one of Global, PerRank"),
    ("spec.optimization.seed = -1", "spec.optimization.seed", "must be at least 0"),
    ("spec.optimization.seed = 9223372036854775808", "spec.optimization.seed", "must be a whole number below 2^63"),
    ("spec.optimization.maxConsecutiveSkippedSteps = 0", "spec.optimization.maxConsecutiveSkippedSteps", "must be at least 1"),
    // Checkpoint.
    ("spec.checkpoint.uri = delete", "spec.checkpoint.uri", "must be given"),
    ("spec.checkpoint.uri = '/runs/a'", "spec.checkpoint.uri", "must be a URI such as file:///runs/a"),
    ("spec.checkpoint.uri = 'file://runs/a'", "spec.checkpoint.uri", "must be a URI such as"),
    ("spec.checkpoint.uri = 'ftp://host/a'", "spec.checkpoint.uri", "must be a URI such as"),
    ("spec.checkpoint.uri = 's3:///a'", "spec.checkpoint.uri", "must be a URI such as"),
    ("spec.checkpoint.uri = 's3://bucket//a'", "spec.checkpoint.uri", "must be a URI such as"),
    ("spec.checkpoint.everySteps = 0", "spec.checkpoint.everySteps", "must be at least 1"),
    ("spec.checkpoint.keepLast = 0", "spec.checkpoint.keepLast", "must be at least 1"),
    ("spec.checkpoint.keepEverySteps = 0", "spec.checkpoint.keepEverySteps", "must be at least 1"),
    ("spec.checkpoint.everySteps = null", "spec.checkpoint.everySteps", "must not be empty"),
    // Workers.
    ("spec.workers.replicas = 0", "spec.workers.replicas", "must be at least 1"),
    ("spec.workers.replicas = 4097; spec.optimization.globalBatchSize = 8192", "spec.workers.replicas", "must be at most 4096"),
    ("spec.workers.membersPerWorker = 0", "spec.workers.membersPerWorker", "must be at least 1"),
    ("spec.workers.replicas = 9", "spec.optimization.globalBatchSize", "number of members at the job's largest size"),
    ("spec.workers.replicas = 3; spec.workers.membersPerWorker = 3", "spec.optimization.globalBatchSize", "number of members"),
    (
        "spec.workers.replicas = 2; spec.elastic = {'minWorkers': 1, 'maxWorkers': 9}",
        "spec.optimization.globalBatchSize",
        "number of members at the job's largest size",
    ),
    ("spec.workers.replicas = 2; spec.elastic = {'minWorkers': 3, 'maxWorkers': 4}", "spec.elastic.minWorkers", "must not exceed"),
    ("spec.workers.replicas = 3; spec.elastic = {'minWorkers': 1, 'maxWorkers': 2}", "spec.elastic.maxWorkers", "must not be below"),
    ("spec.elastic = {'minWorkers': 1}", "spec.elastic.maxWorkers", "must be given"),
    ("spec.elastic = {'minWorkers': 0, 'maxWorkers': 1}", "spec.elastic.minWorkers", "must be at least 1"),
    (
        "spec.elastic = {'minWorkers': 1, 'maxWorkers': 1, 'evictSlowMembers': {'factor': 1.1}}",
        "spec.elastic.evictSlowMembers.factor",
        "must be at least 1.2",
    ),
    (
        "spec.elastic = {'minWorkers': 1, 'maxWorkers': 1, 'evictSlowMembers': {'factor': 101}}",
        "spec.elastic.evictSlowMembers.factor",
        "must be at most 100",
    ),
    (
        "spec.elastic = {'minWorkers': 1, 'maxWorkers': 1, 'evictSlowMembers': {'afterSeconds': 29}}",
        "spec.elastic.evictSlowMembers.afterSeconds",
        "must be at least 30",
    ),
    (
        "spec.elastic = {'minWorkers': 1, 'maxWorkers': 1, 'evictSlowMembers': {'afterSeconds': 86401}}",
        "spec.elastic.evictSlowMembers.afterSeconds",
        "must be at most 86400",
    ),
    ("spec.timeouts = {'heartbeatSeconds': 2}", "spec.timeouts.heartbeatSeconds", "must be at least 3"),
    ("spec.timeouts = {'heartbeatSeconds': 86401}", "spec.timeouts.heartbeatSeconds", "must be at most 86400"),
    ("spec.timeouts = {'heartbeatSeconds': 3.5}", "spec.timeouts.heartbeatSeconds", "must be a whole number"),
    ("spec.timeouts = {'stallSeconds': 9}", "spec.timeouts.stallSeconds", "must be at least 10"),
    ("spec.timeouts = {'formationWaitSeconds': 0}", "spec.timeouts.formationWaitSeconds", "must be at least 1"),
    (
        "spec.optimization.normalization = 'PerRank'; spec.elastic = {'minWorkers': 1, 'maxWorkers': 2}",
        "spec.optimization.normalization",
        "elastic.minWorkers and elastic.maxWorkers must be equal",
    ),
    (
        "spec.optimization.normalization = 'PerRank'; spec.workers.replicas = 3",
        "spec.optimization.globalBatchSize",
        "must be a multiple of workers times membersPerWorker",
    ),
    (
        "spec.optimization.exact = {'virtualShards': 3}",
        "spec.optimization.globalBatchSize",
        "must be a multiple of optimization.exact.virtualShards",
    ),
    ("spec.optimization.exact = {}; spec.optimization.globalBatchSize = 12", "spec.optimization.globalBatchSize", "the default is 8"),
    (
        "spec.optimization.exact = {}; spec.optimization.normalization = 'PerRank'",
        "spec.optimization.normalization",
        "must be Global when optimization.exact is given",
    ),
    (
        "spec.optimization.exact = {}; spec.optimization.gradientCompression = 'Bf16'",
        "spec.optimization.gradientCompression",
        "must be None when optimization.exact is given",
    ),
    ("spec.optimization.gradientCompression = 'fp8'", "spec.optimization.gradientCompression", "must be one of None, Bf16"),
    (
        "spec.optimization.exact = {'virtualShards': 4}; spec.workers.replicas = 5",
        "spec.optimization.exact.virtualShards",
        "number of members at the job's largest size",
    ),
    ("spec.optimization.exact = {'verifyEverySteps': 0}", "spec.optimization.exact.verifyEverySteps", "must be at least 1"),
    ("spec.optimization.exact = {'virtualShards': 0}", "spec.optimization.exact.virtualShards", "must be at least 1"),
    ("spec.optimization.exact = {'threads': 0}", "spec.optimization.exact.threads", "must be at least 1"),
    ("spec.suspend = 'yes'", "spec.suspend", "must be true or false"),
    ("spec.managedBy = 'kueue'", "spec.managedBy", "must be a domain, '/' and a name"),
    ("spec.activeDeadlineSeconds = 0", "spec.activeDeadlineSeconds", "must be at least 1"),
    ("spec.preRunningDeadlineSeconds = 0", "spec.preRunningDeadlineSeconds", "must be at least 1"),
    ("spec.ttlSecondsAfterFinished = -1", "spec.ttlSecondsAfterFinished", "must be at least 0"),
    ("spec.cleanPodPolicy = 'running'", "spec.cleanPodPolicy", "must be one of All, Running, None"),
    ("spec.backoffLimit = 3", "spec.backoffLimit", "no such field"),
    ("spec.failurePolicy.application = {'limit': -1}", "spec.failurePolicy.application.limit", "must be at least 0"),
    ("spec.failurePolicy.maxExcludedNodes = -1", "spec.failurePolicy.maxExcludedNodes", "must be at least 0"),
    ("spec.failurePolicy.maxExcludedNodes = 65", "spec.failurePolicy.maxExcludedNodes", "must be at most 64"),
    ("spec.failurePolicy.preemption = {'limit': 101}", "spec.failurePolicy.preemption.limit", "must be at most 100"),
    ("spec.failurePolicy.infrastructure = {'windowSeconds': 60}", "spec.failurePolicy.infrastructure.limit", "must be given"),
    (
        "spec.failurePolicy.application = {'limit': 1, 'windowSeconds': 59}",
        "spec.failurePolicy.application.windowSeconds",
        "must be at least 60",
    ),
    (
        "spec.failurePolicy.application = {'limit': 1, 'windowSeconds': 2592001}",
        "spec.failurePolicy.application.windowSeconds",
        "must be at most 2592000",
    ),
    (
        "spec.failurePolicy.rules = [{'action': 'FailJob'}]",
        "spec.failurePolicy.rules[0]",
        "exactly one of onExitCodes and onPodConditions must be given",
    ),
    (
        "spec.failurePolicy.rules = [{'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget'}], \
         'onExitCodes': {'operator': 'In', 'values': [1]}}]",
        "spec.failurePolicy.rules[0]",
        "exactly one of onExitCodes and onPodConditions must be given",
    ),
    (
        "spec.failurePolicy.rules = [{'action': 'Restart', 'onExitCodes': {'operator': 'In', 'values': [1]}}]",
        "spec.failurePolicy.rules[0].action",
        "must be one of FailJob, Ignore, Count",
    ),
    (
        "spec.failurePolicy.rules = [{'action': 'FailJob', 'onExitCodes': {'operator': 'Is', 'values': [1]}}]",
        "spec.failurePolicy.rules[0].onExitCodes.operator",
        "must be one of In, NotIn",
    ),
    (
        "spec.failurePolicy.rules = [{'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': [0]}}]",
        "spec.failurePolicy.rules[0].onExitCodes.values[0]",
        "must be at least 1",
    ),
    (
        "spec.failurePolicy.rules = [{'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': []}}]",
        "spec.failurePolicy.rules[0].onExitCodes.values",
        "must have at least 1",
    ),
    (
        "spec.failurePolicy.rules = [{'action': 'FailJob', 'onPodConditions': []}]",
        "spec.failurePolicy.rules[0].onPodConditions",
        "must have at least 1",
    ),
    (
        "spec.failurePolicy.rules = [{'action': 'FailJob', 'onPodConditions': [{'type': 'Ready', 'status': 'Yes'}]}]",
        "spec.failurePolicy.rules[0].onPodConditions[0].status",
        "must be one of True, False, Unknown",
    ),
    (
        "spec.workers.resources = {'limits': {'nvidia.com/gpu': 8}}; spec.workers.membersPerWorker = 4",
        "spec.workers.membersPerWorker",
        "must be the number of accelerators in resources.limits",
    ),
    (
        "spec.workers.acceleratorResource = 'amd.com/gpu'; spec.workers.resources = {'limits': {'amd.com/gpu': '2'}}; \
         spec.workers.membersPerWorker = 1",
        "spec.workers.membersPerWorker",
        "must be the number of accelerators in resources.limits",
    ),
    ("spec.workers.resources = {'limits': {'nvidia.com/gpu': 0}}", "spec.workers.resources.limits", "a whole number of accelerators"),
    ("spec.workers.resources = {'limits': {'nvidia.com/gpu': '65'}}", "spec.workers.resources.limits", "from 1 to 64"),
    ("spec.workers.resources = {'limits': {'nvidia.com/gpu': '9'}}", "spec.optimization.globalBatchSize", "number of members"),
    (
        "spec.optimization.exact = {'virtualShards': 4}; spec.workers.resources = {'limits': {'nvidia.com/gpu': 8}}",
        "spec.optimization.exact.virtualShards",
        "number of members at the job's largest size",
    ),
    ("spec.workers.acceleratorResource = ''", "spec.workers.acceleratorResource", "at least 1 characters"),
    ("spec.workers.resources = {'requests': {'cpu': 1.5}}", "spec.workers.resources.requests.cpu", "must be a whole number or a string"),
    ("spec.workers.resources = {'requests': {'cpu': '4 cores'}}", "spec.workers.resources.requests.cpu", "at most one suffix and no space"),
    (
        "spec.workers.resources = {'requests': {'memory': '32GiB'}}",
        "spec.workers.resources.requests.memory",
        "such as 500m, 2, 1.5, 32Gi or 100M",
    ),
    ("spec.workers.resources = {'requests': {'memory': '1e'}}", "spec.workers.resources.requests.memory", "must be a number"),
    ("spec.workers.resources = {'requests': {'memory': ''}}", "spec.workers.resources.requests.memory", "must be a number"),
    ("spec.workers.resources = {'limits': {'memory': '32GiB'}}", "spec.workers.resources.limits.memory", "must be a number"),
    ("spec.workers.resources = {'cpu': 1}", "spec.workers.resources.cpu", "no such field"),
    ("spec.workers.requests = {'cpu': 1}", "spec.workers.requests", "no such field"),
    // The pod's template.
    (
        "spec.workers.template.spec.containers = [{'name': 'worker', 'resources': {}}]",
        "spec.workers.template",
        "must not give resources to the container `worker`",
    ),
    (
        "spec.workers.template.spec = {'containers': [{'name': 'worker'}], 'volumes': [{'name': 'v', 'emptyDir': {'sizeLimit': '1GB'}}]}",
        "spec.workers.template.spec.volumes[0].emptyDir.sizeLimit",
        "must be a number",
    ),
    ("spec.workers.template.spec = {}", "spec.workers.template.spec.containers", "must be given"),
    (
        "spec.workers.template.spec.containers = [{'name': 'trainer'}]",
        "spec.workers.template.spec.containers",
        "must hold a container named `worker`",
    ),
    (variable!("RANK"), "spec.workers.template.spec.containers[0].env[0].name", "is set by the operator"),
    (variable!("WORLD_SIZE"), "spec.workers.template.spec.containers[0].env[0].name", "is set by the operator"),
    (variable!("MASTER_ADDR"), "spec.workers.template.spec.containers[0].env[0].name", "is set by the operator"),
    (variable!("LCL_JOB"), "spec.workers.template.spec.containers[0].env[0].name", "is set by the operator"),
    (variable!("LCL_WORKER_INDEX"), "spec.workers.template.spec.containers[0].env[0].name", "is set by the operator"),
    (variable!("PET_NNODES"), "spec.workers.template.spec.containers[0].env[0].name", "is set by the operator"),
    (
        "spec.workers.template.spec = {'containers': [{'name': 'worker'}], 'initContainers': [{'name': 'a', 'image': 'a', 'env': [{'name': 'RANK'}]}]}",
        "spec.workers.template.spec.initContainers[0].env[0].name",
        "is set by the operator",
    ),
    (
        "spec.workers.template.spec.containers = [{'name': 'worker'}, {'name': 'worker'}]",
        "spec.workers.template.spec.containers[1].name",
        "must differ from spec.workers.template.spec.containers[0]",
    ),
    (
        "spec.workers.template.spec = {'containers': [{'name': 'worker'}], 'tolerationz': []}",
        "spec.workers.template.spec.tolerationz",
        "did you mean `tolerations`?",
    ),
    (
        "spec.workers.template = {'metadata': {'name': 'x'}, 'spec': {'containers': [{'name': 'worker'}]}}",
        "spec.workers.template.metadata.name",
        "no such field",
    ),
    (
        "spec.workers.template.spec.containers = [{'name': 'worker', 'volumeMounts': [{'name': 'lcl-tmp'}]}]",
        "spec.workers.template.spec.containers[0].volumeMounts[0].mountPath",
        "must be given",
    ),
];

const WITH_PRESET_AND_SHAPE: &str = "spec.model.shape = {'vision': {'imageSize': 16, 'patchSize': 8, 'width': 8, 'layers': 1, 'heads': 1}, \
     'text': {'width': 8, 'layers': 1, 'heads': 1, 'contextLength': 16}, 'embedDim': 8, 'poolHeads': 1}";

// Beside this file, and below the macros that they use.
#[path = "change_cases.rs"]
mod changes;
#[path = "kept_cases.rs"]
mod kept;

pub(crate) use changes::{BROKEN_CHANGES, KEPT_CHANGES};
pub(crate) use kept::KEPT;
