//! Manifests at the boundaries of the rules, which are kept.

/// A boundary kept.
pub(crate) const KEPT: &[&str] = &[
    "spec.serviceAccount = {'annotations': {'eks.amazonaws.com/role-arn': 'arn:aws:iam::1:role/a'}}; \
     spec.workers.template.spec.containers = [{'name': 'worker'}]",
    "spec.serviceAccount = {}; spec.workers.template.spec = {'serviceAccountName': '', 'containers': [{'name': 'worker'}]}",
    "",
    "metadata.labels = {'a.b/c': 'd'}; metadata.annotations = {'A.b/c': 'any text'}",
    "metadata.name = 'abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxy'",
    "metadata.name = 'a'",
    "status = {'anything': 1}",
    "spec.model.preset = 'vit-l-14-laion'",
    "spec.model.dropPath = 0.99; spec.model.layerScale = 0",
    "spec.model.dropPath = 0",
    "spec.model.precision = 'Bfloat16'",
    "spec.model.objective = {'clip': {}}",
    "spec.model.objective = {'lcl': {}}",
    "spec.model.objective = {'lcl': {'generationWeight': 0}}",
    "spec.model.objective = {'lcl': {'contrastiveWeight': 0}}",
    shape!("'heads': 2"),
    // A 16-pixel image in patches of 8 is 4 tokens: 9 are enough, 8 are not.
    text_shape!("'contextLength': 9"),
    mmc4!(
        "'shards': ['/m/docs_no_face_shard_{0..23098}_v2.jsonl.zip'], 'images': {'folder': '/i', 'layout': 'ByShard'}, 'minSimilarity': -1"
    ),
    mixture!(
        "{'name': 'laion', 'webdataset': {'shards': ['/a.tar']}}, \
         {'name': 'mmc4-0', 'weight': 1000000, 'mmc4': {'shards': ['/m.jsonl'], 'images': {'folder': '/i'}}}"
    ),
    concat!(
        mixture!("{'name': 'a', 'webdataset': {'shards': ['/a.tar']}}, {'name': 'b', 'webdataset': {'shards': ['/b.tar']}}"),
        "; spec.data.mixture.by = 'Samples'; spec.model.objective = {'clip': {}}"
    ),
    "spec.data = {'obelics': {'shards': ['/o/*.parquet'], 'images': ['/i/{00000..00099}.tar'], 'split': false, 'maxImages': 64}}",
    "spec.data.webdataset.shards = ['/a/..b/.c/...tar', '/train-{000..007}.tar', '//x/./y']",
    "spec.data.webdataset.shards = ['/{a..c}/{3..1}.tar', '/d/*-[0-9]?.tar', '/d/**/x.tar', '/lists/train.txt']",
    "spec.data.webdataset.imageKeys = ['seg.png', '0']; spec.data.webdataset.captionKeys = ['en.txt']",
    "spec.data.webdataset.keySeparator = 'LastDot'; spec.data.webdataset.captionKeys = ['caption']",
    "spec.data.webdataset.captions = [{'key': 'txt', 'weight': 1000000}, {'json': 'meta.alt text'}, {'key': 'json'}]",
    "spec.data.webdataset.captions = [{'key': 'txt'}]; spec.data.webdataset.captionKeys = ['txt']",
    "spec.data.webdataset.filter = 'similarity >= 0.28 && width >= 200 && NSFW != \\\"NSFW\\\" && (!has(json.punsafe) || punsafe < 0.5)'",
    "spec.data.webdataset.layout = 'Documents'; spec.data.webdataset.maxImages = 64",
    "spec.data.imageFirstProbability = 0",
    "spec.data.imageFirstProbability = 1",
    "spec.data.shuffle = {'lanes': 1, 'window': 1000000000}",
    "spec.data.augmentation.scale = [1, 1]; spec.data.augmentation.ratio = [1, 1]",
    "spec.data.augmentation = {'scale': [0.5, 1]}",
    "spec.optimization.steps = 1",
    "spec.optimization.schedule = {'cosine': {'warmupSteps': 100}}",
    "spec.optimization.schedule = delete; spec.optimization.steps = 1",
    "spec.optimization.schedule = {'constant': {}}",
    "spec.optimization.microBatchSize = 8",
    "spec.optimization.learningRate = 1",
    "spec.optimization.weightDecay = 0; spec.optimization.betas = [0, 0]; spec.optimization.gradientClip = 1",
    "spec.optimization.seed = 9223372036854775807",
    "spec.optimization.normalization = 'PerRank'; spec.workers.replicas = 4; spec.workers.membersPerWorker = 2",
    "spec.optimization.normalization = 'PerRank'; spec.workers.replicas = 2; spec.elastic = {'minWorkers': 2, 'maxWorkers': 2}",
    "spec.optimization.gradientCompression = 'Bf16'",
    "spec.optimization.exact = {}; spec.workers.replicas = 8",
    "spec.optimization.exact = {'virtualShards': 4, 'threads': 2}; spec.workers.replicas = 2; spec.workers.membersPerWorker = 2",
    "spec.checkpoint.uri = 's3://bucket'",
    "spec.checkpoint.uri = 'gs://bucket/a b/c'",
    "spec.checkpoint.uri = 'az://container/a'",
    "spec.workers.replicas = 8",
    "spec.managedBy = 'kueue.x-k8s.io/multikueue'",
    "spec.workers.replicas = 4096; spec.optimization.globalBatchSize = 4096",
    "spec.workers.replicas = 2; spec.elastic = {'minWorkers': 2, 'maxWorkers': 8}",
    "spec.timeouts = {'heartbeatSeconds': 3, 'stallSeconds': 10, 'formationWaitSeconds': 1}",
    "spec.timeouts = {'heartbeatSeconds': 86400, 'stallSeconds': 86400, 'formationWaitSeconds': 86400}",
    "spec.workers.resources = {'requests': {'cpu': 2, 'memory': '4Gi'}, 'limits': {'nvidia.com/gpu': 1}}",
    "spec.workers.resources = {'limits': {'nvidia.com/gpu': '8'}}; spec.workers.membersPerWorker = 8",
    "spec.workers.resources = {'limits': {'nvidia.com/gpu': '8'}}; spec.workers.acceleratorResource = 'amd.com/gpu'; \
     spec.workers.membersPerWorker = 2",
    "spec.workers.resources = {'limits': {'nvidia.com/gpu': 2}}; spec.workers.replicas = 4; spec.optimization.normalization = 'PerRank'",
    "spec.workers.resources = {'requests': {'cpu': 1}}; \
     spec.workers.template.spec.containers = [{'name': 'worker'}, {'name': 'b', 'image': 'b', 'resources': {}}]",
    "spec.workers.template = {'metadata': {'labels': {'a': 'b'}}}",
    "spec.workers.resources = {'requests': {'cpu': '.5', 'memory': '+1.Gi'}}",
    variable!("RANKS"),
    variable!("LCL_THREADS"),
    "spec.coordinator = {'resources': {'requests': {'cpu': '1'}}, 'tolerations': [{'operator': 'Exists'}], 'schedulerName': 'volcano'}",
    variable!("MY_MASTER_"),
];
