"""Faults that the quick tests must notice: tests/mutants.py plants them, tests/test_mutants.py checks the list."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`change` in words: `old`, which is in `file` exactly once, becomes `new`; one of `tests` then fails."""

    change: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CONFIG = "tests/aecore/test_config.py"
ANALYSIS = "tests/aecore/test_analysis.py"
LOADERS = "tests/aecore/data/test_loaders.py"
SHUFFLE = "tests/aecore/data/test_shuffle.py"
IMAGES = "tests/aecore/data/test_images.py"
SAMPLERS = "tests/aecore/latent/test_samplers.py"
DIRECTIONS = "tests/aecore/latent/test_directions.py"
INTERPOLATION = "tests/aecore/latent/test_interpolation.py"
STATS = "tests/aecore/latent/test_stats.py"
POINTS = "tests/aecore/latent/test_points.py"
PIXEL = "tests/aecore/metrics/test_pixel.py"
DISTRIBUTION = "tests/aecore/metrics/test_distribution.py"
AUTOENCODER = "tests/aecore/model/test_autoencoder.py"
CORRUPTIONS = "tests/aecore/model/test_corruptions.py"
LOSSES = "tests/aecore/model/test_losses.py"
SYNC_BATCH_NORM = "tests/aecore/model/test_sync_batch_norm.py"
CHECKPOINT = "tests/aecore/training/test_checkpoint.py"
EVALUATE = "tests/aecore/training/test_evaluate.py"
LOOP = "tests/aecore/training/test_loop.py"
COMPILED = "tests/aecore/training/test_compiled.py"
SETTINGS = "tests/cluster/test_settings.py"
STORAGE = "tests/cluster/test_storage.py"
VERDICTS = "tests/jobs/claims/test_verdicts.py"
FINDINGS = "tests/jobs/study/test_findings.py"
MEASUREMENTS = "tests/jobs/study/test_measurements.py"
STOPPING = "tests/jobs/train/test_stopping.py"
SELECTION = "tests/jobs/tune/test_selection.py"
RUNNER = "tests/jobs/tune/test_runner.py"
SEARCH_SPACE = "tests/aecore/test_search_space.py"
LAYOUT = "tests/aecore/data/test_layout.py"
REMOTE_PATH = "tests/aecore/data/test_remote_path.py"
INGEST = "tests/jobs/ingest/test_ingest.py"
LOCK = "tests/cluster/test_lock.py"
TRAIN = "tests/jobs/train/test_train.py"
NETWORK = "tests/cluster/test_network.py"
CLIENT = "tests/serving/client/test_client.py"
API = "tests/serving/http/test_api.py"
REQUEST_FORMS = "tests/serving/http/test_request_forms.py"
API_IMAGES = "tests/serving/http/test_api_images.py"
API_POINTS = "tests/serving/http/test_api_points.py"
ACCESS_LOG = "tests/serving/http/test_access_log.py"
DECODING = "tests/serving/http/test_decoding.py"
ENCODING = "tests/serving/http/test_encoding.py"
BATCHING = "tests/serving/runtime/test_batching.py"
FACE_FINDER = "tests/serving/runtime/test_face_finder.py"
MODEL_LOADING = "tests/serving/runtime/test_model_loading.py"
REFERENCE_STEPS = f"{LOOP}::test_each_step_equals_a_float64_reference"

PLANTED = (
    # The network, its loss and the training loop.
    Fault(
        "z is drawn with the variance in place of the sd", "aecore/model/autoencoder.py",
        "torch.exp(0.5 * self.logvar)", "torch.exp(self.logvar)", (AUTOENCODER,),
    ),
    Fault(
        "logvar is not clamped", "aecore/model/autoencoder.py",
        "logvar.clamp(*LOGVAR_RANGE)", "logvar", (AUTOENCODER,),
    ),
    Fault(
        "images are cut off in place of rounded", "aecore/model/autoencoder.py",
        "images.mul(255.0).round_()", "images.mul(255.0)", (AUTOENCODER,),
    ),
    Fault(
        "weights are He's for a kernel without stride", "aecore/model/autoencoder.py",
        "math.prod(layer.kernel_size) / math.prod(layer.stride))", "math.prod(layer.kernel_size))", (AUTOENCODER,),
    ),
    Fault(
        "sync_batch normalises per worker", "aecore/model/autoencoder.py",
        "return SyncBatchNorm(channels)", "return nn.BatchNorm2d(channels)", (AUTOENCODER,),
    ),
    Fault(
        "the running variance of sync_batch is biased", "aecore/model/sync_batch_norm.py",
        "unbiased = variance * count / (count - 1).clamp_min(1)", "unbiased = variance", (SYNC_BATCH_NORM,),
    ),
    Fault(
        "sync_batch's gradients are those of each worker alone", "aecore/model/sync_batch_norm.py",
        "total = grads[0].contiguous().clone()\n        dist.all_reduce(total)",
        "total = grads[0].contiguous().clone()", (SYNC_BATCH_NORM,),
    ),
    Fault(
        "the BCE is a mean over pixels", "aecore/model/losses.py",
        'binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).sum(1)',
        'binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1).mean(1)', (LOSSES,),
    ),
    Fault(
        "the squared error is one of logits", "aecore/model/losses.py",
        "F.mse_loss(logits.sigmoid(), images", "F.mse_loss(logits, images", (LOSSES,),
    ),
    Fault(
        "free bits raise the reported KL", "aecore/model/losses.py",
        "kl_per_dim.sum(1), penalised.sum(1)", "penalised.sum(1), penalised.sum(1)", (LOSSES,),
    ),
    Fault(
        "kl_factor is ignored", "aecore/training/loop.py",
        "recon + kl_factor * kl_penalty, recon", "recon + kl_penalty, recon", (REFERENCE_STEPS,),
    ),
    Fault(
        "the KL warm-up is ignored", "aecore/training/loop.py",
        "beta = kl_factor(recipe.loss, step, run.steps_per_epoch)", "beta = recipe.loss.kl_factor", (REFERENCE_STEPS,),
    ),
    Fault(
        "the learning-rate schedule is ignored", "aecore/training/loop.py",
        "rate = learning_rate(recipe.optim, step, run.steps_per_epoch)", "rate = recipe.optim.lr",
        (REFERENCE_STEPS,),
    ),
    Fault(
        "gradients are not scaled by the number of workers", "aecore/training/loop.py",
        "run.world.size / batch.count, step]", "1 / batch.count, step]",
        (f"{LOOP}::test_mean_of_the_workers_gradients_is_the_gradient_of_one_worker",),
    ),
    Fault(
        "each step has the same noise", "aecore/training/loop.py",
        "batch, step, LATENT_NOISE)", "batch, 0, LATENT_NOISE)", (REFERENCE_STEPS,),
    ),
    Fault(
        "epoch sums of several workers are counted twice", "aecore/training/loop.py",
        "total if run.world.rank == 0 else torch.zeros_like(total)", "total",
        (f"{LOOP}::test_sums_of_an_open_epoch_move_to_rank_0",),
    ),
    Fault(
        "epochs are validated in training mode", "aecore/training/loop.py",
        "run.model.eval()\n        if run.world", "if run.world",
        (f"{LOOP}::test_model_is_in_training_mode_in_steps_and_in_eval_mode_in_evaluations",),
    ),
    Fault(
        "epochs after the first are trained in eval mode", "aecore/training/loop.py",
        "run.model.train()\n        yield", "yield",
        (f"{LOOP}::test_model_is_in_training_mode_in_steps_and_in_eval_mode_in_evaluations",),
    ),
    Fault(
        "the metrics of an epoch contain those before", "aecore/training/loop.py",
        "epoch + 1, {}\n        run.epoch_sums.zero_()", "epoch + 1, {}",
        (f"{LOOP}::test_epoch_sums_hold_the_images_of_the_open_epoch_alone",),
    ),
    Fault(
        "sums are float32", "aecore/training/loop.py",
        "self.epoch_sums = torch.zeros(len(EPOCH_SUMS), dtype=torch.float64",
        "self.epoch_sums = torch.zeros(len(EPOCH_SUMS)",
        (f"{LOOP}::test_sums_of_many_images_are_exact",),
    ),
    Fault(
        "the warm-up starts at a learning rate of 0", "aecore/training/loop.py",
        "optim.lr * (step + 1)", "optim.lr * step",
        (f"{LOOP}::test_learning_rate_rises_linearly_then_falls_by_a_cosine",),
    ),
    Fault(
        "the cosine does not end at 0", "aecore/training/loop.py",
        "0.5 * (1 + math.cos(", "0.5 * (1.2 + math.cos(",
        (f"{LOOP}::test_learning_rate_rises_linearly_then_falls_by_a_cosine",),
    ),
    Fault(
        "a CUDA graph repeats the batch of its capture", "aecore/training/compiled.py",
        "static.copy_(tensor)", "static.copy_(static)",
        (f"{COMPILED}::test_graph_replays_the_step_on_the_inputs_of_each_call",),
    ),
    Fault(
        "the short last batch is compiled too", "aecore/training/compiled.py",
        "if len(corrupted) == self.rows:", "if True:",
        (f"{COMPILED}::test_steps_of_full_batches_are_compiled_once_and_the_short_one_is_not",),
    ),
    Fault(
        "a deterministic run compiles by the steps that are left", "aecore/training/compiled.py",
        " and not optim.deterministic", "", (f"{COMPILED}::test_auto_compiles_if_the_steps_that_are_left_pay_for_it",),
    ),
    Fault(
        "the samplers' statistics are fitted on validation images", "aecore/training/loop.py",
        "draw_train_points(self.model, self.recipe, self.train)",
        "draw_train_points(self.model, self.recipe, self.valid)",
        ("tests/jobs/train/test_train.py::test_batch_norm_model_is_saved_and_tested_in_eval_mode",),
    ),
    Fault(
        "the sampled images of an epoch are those of validation z-points", "aecore/training/evaluate.py",
        "draw_train_points(model, self.recipe, self.train,", "draw_train_points(model, self.recipe, self.valid,",
        (f"{EVALUATE}::test_epochs_show_samples_of_the_gaussian_fitted_to_training_images",),
    ),
    Fault(
        "the samplers' statistics are those of the means of q(z|x)", "aecore/training/evaluate.py",
        "z_points.append(posterior.sample(noise).cpu())", "z_points.append(posterior.mean.cpu())", (EVALUATE,),
    ),
    Fault(
        "each unit counts as active in training", "aecore/training/evaluate.py",
        "> ACTIVE_VARIANCE)", "> -1)", (EVALUATE,),
    ),
    Fault(
        "the validation loss has a KL factor of 1", "aecore/training/evaluate.py",
        'metrics["recon"] + recipe.loss.kl_factor * metrics["kl"]', 'metrics["recon"] + metrics["kl"]', (EVALUATE,),
    ),
    Fault(
        "outputs are compared with the corrupted inputs", "aecore/training/evaluate.py",
        "mse = mean_squared_error(decoded, clean)", "mse = mean_squared_error(decoded, corrupted)", (EVALUATE,),
    ),
    Fault(
        "pruning deletes the checkpoint with the lowest loss", "aecore/training/checkpoint.py",
        "if path != best:", "if path:", (CHECKPOINT,),
    ),
    Fault(
        "checkpoints of an abandoned attempt win over new ones", "aecore/training/checkpoint.py",
        "if _step(path) > step or _step(path) in", "if _step(path) in", (CHECKPOINT,),
    ),
    Fault(
        "a model that could not be saved again is one of old and new files", "aecore/training/checkpoint.py",
        'for name in ("config.json", POINTS_FILE):', "for name in (POINTS_FILE,):", (CHECKPOINT,),
    ),
    Fault(
        "checkpoints wait until no more epochs end", "aecore/training/checkpoint.py",
        "for _ in range(num_calls):", "while self._pending_calls:", (CHECKPOINT,),
    ),
    Fault(
        "a training never waits for a slow storage", "aecore/training/checkpoint.py",
        "wait([self._last_write])", "pass", (CHECKPOINT,),
    ),
    Fault(
        "a training waits for a failing storage", "aecore/training/checkpoint.py",
        " and not self._is_failing:", ":", (CHECKPOINT,),
    ),
    Fault(
        "a damaged checkpoint is loaded", "aecore/training/checkpoint.py",
        'if any(sha256(content) != progress["sha256"][name] for', 'if any(not progress["sha256"][name] for',
        (CHECKPOINT,),
    ),
    Fault(
        "a resumed optimizer starts with empty moments", "aecore/training/checkpoint.py",
        '_load_optimizer(optimizer, load_tensors(contents["optimizer.safetensors"]))', "pass", (CHECKPOINT,),
    ),
    Fault(
        "weights of another network version are loaded", "aecore/training/checkpoint.py",
        '!= NETWORK_VERSION:', "> 99:", (CHECKPOINT,),
    ),
    # Tasks.
    Fault(
        "flipped images stand on their heads", "aecore/model/corruptions.py",
        "images.flip(2)", "images.flip(1)", (f"{LOADERS}::test_a_flip_depends_on_the_counters_alone",),
    ),
    Fault(
        "each worker draws its own noise", "aecore/model/corruptions.py",
        "torch.randn(self.count, *shape, generator=self.generator, device=self.generator.device)[self.positions]",
        "torch.randn(len(self.positions), *shape, generator=self.generator, device=self.generator.device)",
        (CORRUPTIONS,),
    ),
    Fault(
        "denoise adds uniform noise", "aecore/model/corruptions.py",
        "task.sigma * noise.normal(*clean.shape[1:])", "task.sigma * noise.uniform(*clean.shape[1:])", (CORRUPTIONS,),
    ),
    Fault(
        "drop keeps what it is to drop", "aecore/model/corruptions.py",
        ">= task.keep", "< task.keep", (CORRUPTIONS,),
    ),
    # The order of images.
    Fault(
        "each epoch has the same order", "aecore/data/shuffle.py",
        "derive_seed(seed, epoch, 0)", "derive_seed(seed, 0, 0)", (SHUFFLE,),
    ),
    Fault(
        "all workers get the slice of the first", "aecore/data/shuffle.py",
        "self.size)[self.rank]", "self.size)[0]", (SHUFFLE,),
    ),
    Fault(
        "spaced images are the first ones", "aecore/data/shuffle.py",
        "np.arange(limit) * count // limit", "np.arange(limit)",
        (f"{LOADERS}::test_spaced_images_are_spread_over_the_split",),
    ),
    Fault(
        "positions and counts of a stream's batches are local to a worker", "aecore/data/loaders.py",
        "self._position_and_count(len(images)) if epoch is not None else (0, len(images))", "0, len(images)",
        (f"{LOADERS}::test_positions_in_a_streamed_global_batch_follow_those_of_lower_ranks",),
    ),
    Fault(
        "a stream's buffer mixes each epoch alike", "aecore/data/loaders.py",
        "derive_seed(self.sampler.seed, epoch, self.sampler.world.rank)", "derive_seed(self.sampler.seed)",
        (f"{LOADERS}::test_buffer_of_a_stream_mixes_differently_in_each_epoch_and_worker",),
    ),
    Fault(
        "a loader overwrites the batch in use", "aecore/data/loaders.py",
        "range(threads + 2)", "range(threads)", (f"{LOADERS}::test_node_and_device_loaders_are_bit_identical",),
    ),
    Fault(
        "the crop is at the top left", "aecore/data/images.py",
        "left + (box_width - side) // 2, top + (box_height - side) // 2", "left, top", (IMAGES,),
    ),
    Fault(
        "a fifth of the images is tested", "aecore/data/splits.py",
        '"test": (0.1, 0.2)', '"test": (0.1, 0.3)', ("tests/aecore/data/test_splits.py",),
    ),
    Fault(
        "a recipe's digest ignores data.flip", "aecore/config.py",
        '{"data": {"flip"}, "model": True', '{"model": True', (CONFIG,),
    ),
    # Samplers and statistics of z-points.
    Fault(
        "the cube has only its positive orthant", "aecore/latent/samplers.py",
        "(torch.rand(n, z_dim, generator=generator) * 2 - 1) * boundary",
        "torch.rand(n, z_dim, generator=generator) * boundary", (SAMPLERS,),
    ),
    Fault(
        "the sphere is not uniform", "aecore/latent/samplers.py",
        "z = torch.randn(n, z_dim, generator=generator)\n    return z / z.norm",
        "z = torch.rand(n, z_dim, generator=generator) * 2 - 1\n    return z / z.norm", (SAMPLERS,),
    ),
    Fault(
        "`diagonal` has the variance in place of the sd", "aecore/latent/samplers.py",
        'latents["covariance"].diagonal().sqrt()', 'latents["covariance"].diagonal()', (SAMPLERS,),
    ),
    Fault(
        "`gaussian` has no correlations", "aecore/latent/samplers.py",
        "correlation = covariance / torch.outer(sd, sd) + 1e-4 *", "correlation =", (SAMPLERS,),
    ),
    Fault(
        "the weights of the mixture are ignored", "aecore/latent/samplers.py",
        'torch.multinomial(latents["gmm_weights"], n, replacement=True, generator=generator)',
        'torch.randint(len(latents["gmm_weights"]), (n,), generator=generator)', (SAMPLERS,),
    ),
    Fault(
        "the factors of the mixture are transposed", "aecore/latent/samplers.py",
        'latents["gmm_factors"][component].T', 'latents["gmm_factors"][component]', (SAMPLERS,),
    ),
    Fault(
        "few points are not shrunk", "aecore/latent/density.py",
        "(1 - shrinkage) * covariance + shrinkage * target", "covariance",
        (f"{SAMPLERS}::test_shrunk_covariance_equals_that_of_scikit_learn",),
    ),
    Fault(
        "a great circle is about the origin", "aecore/latent/interpolation.py",
        "centre, t = points.mean(0),", "centre, t = torch.zeros_like(start),", (INTERPOLATION,),
    ),
    Fault(
        "edges between neighbours cost their length", "aecore/latent/interpolation.py",
        "of_points.values]).square().clamp_min", "of_points.values]).clamp_min", (INTERPOLATION,),
    ),
    Fault(
        "squared lengths overflow", "aecore/latent/interpolation.py",
        "points]).double()", "points])", (INTERPOLATION,),
    ),
    Fault(
        "a missing value counts in an attribute's direction", "aecore/latent/directions.py",
        "has_value = values.isfinite()", "has_value = values.bool() | True", (DIRECTIONS,),
    ),
    Fault(
        "t-SNE crashes on equal z-points", "aecore/latent/stats.py",
        "if not (z - z[0]).square().any():", "if False:", (STATS,),
    ),
    Fault(
        "each unit counts as active in a study", "aecore/latent/stats.py", "> ACTIVE_VARIANCE)", "> -1)", (STATS,),
    ),
    Fault(
        "the radius is the distance from the mean", "aecore/latent/stats.py",
        "np.linalg.norm(x, axis=1)", "np.linalg.norm(x - x.mean(0), axis=1)", (STATS,),
    ),
    Fault(
        "kurtosis is not in excess of the normal one", "aecore/latent/stats.py",
        ".mean(0).sub(3)", ".mean(0)", (STATS,),
    ),
    Fault(
        "a direction's sd is replaced by its variance in a study", "aecore/analysis.py",
        "sd = (unit @ covariance @ unit).sqrt()", "sd = unit @ covariance @ unit",
        (f"{ANALYSIS}::test_directions_are_decoded_at_evenly_spaced_sds_around_the_mean",),
    ),
    Fault(
        "the own radius is sqrt(z_dim)", "aecore/analysis.py",
        "radius=float(self.train_z.norm(dim=1).mean())", "radius=self.train_z.shape[1] ** 0.5",
        (f"{ANALYSIS}::test_own_radius_is_that_of_the_training_z_points",),
    ),
    # Metrics.
    Fault("PSNR is doubled", "aecore/metrics/pixel.py", "-10.0 * torch.log10", "-20.0 * torch.log10", (PIXEL,)),
    Fault(
        "the Frechet distance ignores the means", "aecore/metrics/distribution.py",
        "np.square(mean - self._mean).sum() + traces", "traces", (DISTRIBUTION,),
    ),
    Fault(
        "coverage counts the farthest real neighbour", "aecore/metrics/distribution.py",
        "[:, COVERAGE_NEIGHBOUR - 1]", "[:, -1]", (DISTRIBUTION,),
    ),
    Fault(
        "images count as copies up to twice the ratio", "aecore/metrics/distribution.py",
        "COPY_RATIO = 1 / 3", "COPY_RATIO = 2 / 3", (DISTRIBUTION,),
    ),
    # Claims and studies.
    Fault(
        "almost none is up to 19 %", "jobs/claims/verdicts.py",
        "ALMOST_NONE = 0.1 ", "ALMOST_NONE = 0.19 ", (VERDICTS,),
    ),
    Fault(
        "near real begins at 60 %", "jobs/claims/verdicts.py", "NEAR_REAL = 0.9 ", "NEAR_REAL = 0.6 ", (VERDICTS,),
    ),
    Fault(
        "`one-region` always holds", "jobs/claims/verdicts.py",
        "return Verdict(holds, evidence, (), charts)", "return Verdict(True, evidence, (), charts)", (VERDICTS,),
    ),
    Fault(
        "`fitted` always holds", "jobs/claims/verdicts.py",
        'Verdict(_is_near_real(run, "gaussian"), evidence, rows)', "Verdict(True, evidence, rows)", (VERDICTS,),
    ),
    Fault(
        "`vae-radius` always holds", "jobs/claims/verdicts.py",
        'return Verdict(holds, f"mean radius', 'return Verdict(True, f"mean radius', (VERDICTS,),
    ),
    Fault(
        "any gain of PSNR is visible", "jobs/claims/verdicts.py",
        "VISIBLE_PSNR = 0.5 ", "VISIBLE_PSNR = 0.0 ", (VERDICTS,),
    ),
    Fault(
        "`kl-factor` ignores the rates", "jobs/claims/verdicts.py",
        "Verdict(psnr_falls and rate_rises,", "Verdict(psnr_falls,", (VERDICTS,),
    ),
    Fault(
        "one standard error makes a difference", "jobs/study/metrics.py",
        "limit = 2.0 if", "limit = 1.0 if", (FINDINGS,),
    ),
    Fault(
        "the extremes of many rates are compared as two", "jobs/study/metrics.py",
        "2.0 if num_compared == 2", "2.0 if num_compared", (FINDINGS,),
    ),
    Fault(
        "the mean radius of N(0, 1) is sqrt(z_dim)", "jobs/study/findings.py",
        'chi(run["z_dim"]).mean()', 'run["points"]["sqrt_z_dim"]', (FINDINGS,),
    ),
    Fault(
        "the best of many runs is compared as one of two", "jobs/study/findings.py",
        'rates_differ(rates[best], rates[worst], study["judged"], len(rates))',
        'rates_differ(rates[best], rates[worst], study["judged"])', (FINDINGS,),
    ),
    Fault(
        "the best of many samplers is compared as one of two", "jobs/study/findings.py",
        'study["judged"], len(scores_by_pair))', 'study["judged"])', (FINDINGS,),
    ),
    Fault(
        "the best fit is compared as one of two", "jobs/study/findings.py",
        "rates_differ(rates[best], normal_rate, num_samples, len(rates) + 1)",
        "rates_differ(rates[best], normal_rate, num_samples)", (FINDINGS,),
    ),
    Fault(
        "the most copied sampler is compared as one of two", "jobs/study/findings.py",
        "rates_differ(rates[worst], real_rate, num_samples, len(rates) + 1)",
        "rates_differ(rates[worst], real_rate, num_samples)", (FINDINGS,),
    ),
    Fault(
        "nearly all is written as all", "jobs/study/metrics.py", "0.995 <= rate < 1", "0.9999 <= rate < 1", (FINDINGS,),
    ),
    Fault(
        "the best trial is the one of the highest PSNR", "jobs/tune/selection.py",
        "default=0.0) - slack", "default=0.0)", ("tests/jobs/tune/test_selection.py",),
    ),
    Fault(
        "workers save without the others", "jobs/train/stopping.py",
        "action, self._stride = self._max_over_workers(max(action, self.local_action()), stride)",
        "action, self._stride = max(action, self.local_action()), stride", (STOPPING,),
    ),
    # The endpoint.
    Fault(
        "batch norms are dropped from the served layers", "serving/runtime/model_loading.py",
        "layers[-1] = fuse_conv_bn_eval(layers[-1], layer, transpose=transposed)", "pass",
        (f"{MODEL_LOADING}::test_folding_norms_changes_nothing_in_float64",),
    ),
    Fault(
        "transposed convolutions are folded as plain ones", "serving/runtime/model_loading.py",
        "transpose=transposed)", "transpose=False)",
        (f"{MODEL_LOADING}::test_folding_norms_changes_nothing_in_float64",),
    ),
    Fault(
        "the decoder gives another layout", "aecore/model/autoencoder.py",
        "return to_uint8(torch.sigmoid(self.logits(z)))",
        "return to_uint8(torch.sigmoid(self.logits(z))).transpose(1, 2).contiguous().transpose(1, 2)",
        (f"{MODEL_LOADING}::test_networks_equal_those_of_the_model",),
    ),
    Fault(
        "/v1/reconstruct ignores its seed", "serving/http/api.py",
        "operations.corrupt_images, task, images, seed)", "operations.corrupt_images, task, images, 0)", (API_IMAGES,),
    ),
    Fault(
        "/v1/sample ignores the sampler's parameters", "serving/http/operations.py",
        "sample(name, request.n, latents, seed, **parameters)", "sample(name, request.n, latents, seed)", (API,),
    ),
    Fault(
        "null is no default of a task's parameter", "serving/http/operations.py",
        "{**_drop_none(options.parameters),", "{**options.parameters,", (REQUEST_FORMS,),
    ),
    Fault(
        "the latent space has variances in place of sds", "serving/runtime/model_slot.py",
        '_rounded(self.latents["covariance"].diagonal().sqrt())', '_rounded(self.latents["covariance"].diagonal())',
        (API,),
    ),
    Fault(
        "a direction's sd is replaced by its variance at the endpoint", "serving/runtime/model_slot.py",
        "variances[:MAX_AXES].sqrt()", "variances[:MAX_AXES]", (API,),
    ),
    Fault(
        "a mixture's variance has its covariance factors in place of their squares", "serving/runtime/model_slot.py",
        'self.latents["gmm_factors"].square()', 'self.latents["gmm_factors"]', (API,),
    ),
    Fault(
        "requests get the results of others", "serving/runtime/batching.py",
        "start += len(request_items)", "start += 1", (BATCHING,),
    ),
    Fault(
        "batches exceed their maximum", "serving/runtime/batching.py",
        "while self._queue and batch_size + len(self._queue[0][0]) <= self._max_batch_size:", "while self._queue:",
        (BATCHING,),
    ),
    Fault(
        "an image is decoded as z-points", "serving/http/decoding.py",
        'if "images" not in keys:', "if False:", ("tests/serving/http/test_request_forms.py",),
    ),
    Fault(
        "image formats are not recognised", "serving/http/decoding.py",
        "ANY_IMAGE if sniff_format(body[:64])", "ANY_IMAGE if sniff_format(body[1:64])",
        ("tests/serving/http/test_request_forms.py",),
    ),
    Fault(
        "unequal items stop the batcher", "serving/runtime/batching.py",
        """                try:
                    items = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
""",
        """                items = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
                try:
""",
        (BATCHING,),
    ),
    Fault(
        "the first replica waits for MLflow", "serving/runtime/replica.py",
        "is_first = served is None", "is_first = False", ("tests/serving/runtime/test_replica.py",),
    ),
    Fault(
        "a later replica tries the deployed version first", "serving/runtime/replica.py",
        "is_first = served is None", "is_first = True", ("tests/serving/runtime/test_replica.py",),
    ),
    Fault("NaN is decoded", "serving/http/decoding.py", "if not np.isfinite(z).all():", "if False:", (DECODING,)),
    Fault(
        "the least acceptable media type is sent", "serving/http/encoding.py",
        "best = max(media_types, key=q)", "best = min(media_types, key=q)", (ENCODING,),
    ),
    Fault(
        "any scheme authorizes", "serving/http/middleware.py",
        'self._token) and auth_scheme.lower() == b"bearer"', "self._token)", (API,),
    ),
    Fault(
        "JSON is compressed for clients that refuse gzip", "serving/http/middleware.py",
        'if not (name == b"accept-encoding" and GZIP_REFUSED.search(value))', "if True", (REQUEST_FORMS,),
    ),
    Fault(
        "a small weight of gzip refuses it", "serving/http/middleware.py",
        r"q=0(\.0*)?\s*(,|$)", "q=0", (REQUEST_FORMS,),
    ),
    Fault(
        "a request that names another version is answered", "serving/http/middleware.py",
        "refusal or _refuse_other_version(scope, model.info.label) or self._app", "refusal or self._app", (API,),
    ),
    Fault(
        "the client decodes z-points of another version", "serving/client/client.py",
        'return str(version) or getattr(z, "model", "")', "return str(version)", (CLIENT,),
    ),
    Fault(
        "the client retries a request that took too long", "serving/client/client.py",
        '(response.status_code == 503 and "retry-after" in response.headers)', "response.status_code == 503", (CLIENT,),
    ),
    Fault(
        "a large request for neighbours is computed in one piece", "serving/http/api.py",
        "MAX_NEIGHBOURS // options.k", "len(z)", (API_POINTS,),
    ),
    Fault(
        "requests for neighbours are admitted whatever their size", "serving/http/api.py",
        "with admission.admit(options.k * len(z)):", "with admission.admit(len(z)):", (API_POINTS,),
    ),
    Fault(
        "the neighbours of a point are rows of all nodes", "aecore/latent/interpolation.py",
        "(len(points), 2), nodes + 2], 1)", "(len(points), 2), nodes], 1)", (INTERPOLATION,),
    ),
    Fault(
        "the neighbours of points are computed for each path", "aecore/latent/interpolation.py",
        "cached = k <= MAX_CACHED_NEIGHBOURS", "cached = False", (INTERPOLATION,),
    ),
    Fault(
        "distances between z-points are in float32", "aecore/latent/points.py",
        "torch.cdist(queries.double(), points.double(),", "torch.cdist(queries, points,", (POINTS,),
    ),
    Fault(
        "places on the map are weighted by the distance, not its square", "aecore/latent/points.py",
        "distances.square().clamp_min(1e-18)", "distances.clamp_min(1e-18)", (POINTS,),
    ),
    Fault(
        "the PNG of many images is one row", "jobs/commands/client.py",
        "math.ceil(math.sqrt(len(rows) * n))", "n", ("tests/jobs/commands/test_client.py",),
    ),
    Fault(
        "the client ignores Retry-After", "serving/client/client.py",
        "if retry_after_s is not None:", "if False:", (CLIENT,),
    ),
    Fault(
        "all images of a request are corrupted at once", "serving/http/operations.py",
        "CORRUPTION_BLOCK = 64", "CORRUPTION_BLOCK = 4096", (API_IMAGES,),
    ),
    Fault(
        "each block of images gets the same noise", "serving/http/operations.py",
        "noise = BatchNoise(generator,", "noise = BatchNoise(generator.manual_seed(seed),", (API_IMAGES,),
    ),
    Fault(
        "decoded pixels wait for a thread", "serving/http/api.py",
        "run_in_executor(request.app.state.image_decoders, parse)", "run_in_executor(None, parse)", (API_IMAGES,),
    ),
    Fault(
        "faces take the threads of other routes", "serving/runtime/face_finder.py",
        '"faces", executor=executor,', '"faces", executor=None,', (FACE_FINDER,),
    ),
    Fault(
        "the first rush for the face detector is admitted whole", "serving/runtime/face_finder.py",
        ", first_estimate=FIRST_ESTIMATE", "", (FACE_FINDER,),
    ),
    Fault(
        "the client repeats a call at once while replicas swap", "serving/client/client.py",
        "        yield _backoff_s(attempt)\n", "", (CLIENT,),
    ),
    Fault(
        "a mixed interpolation is not repeated by the new version", "serving/client/client.py",
        "_by_one_version(lambda: self._interpolate_z(points, query, pin), pin)",
        "self._interpolate_z(points, query, pin)", (CLIENT,),
    ),
    Fault(
        "thumbnails have the ETag of their version", "serving/http/api.py",
        "{points.sprites_sha256}", "{request.state.model.info.label}", (API_POINTS,),
    ),
    Fault(
        "a cancelled request has the status 0", "serving/http/middleware.py",
        """            status = CLIENT_CLOSED_REQUEST
            raise
""",
        "            raise\n", (API,),
    ),
    Fault(
        "an access log that fails fails requests", "serving/http/access_log.py",
        "except OSError as error:", "except BlockingIOError as error:", (ACCESS_LOG,),
    ),
    # Settings and storage.
    Fault(
        "AWS_ENDPOINT_URL is not forwarded", "cluster/settings.py",
        '"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS"',
        '"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS"', (SETTINGS,),
    ),
    Fault(
        "the session token is not forwarded", "cluster/settings.py",
        '"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"', '"AWS_SECRET_ACCESS_KEY"', (SETTINGS,),
    ),
    Fault(
        "a relative tracking database is exported as it is", "cluster/settings.py",
        '        "MLFLOW_TRACKING_URI": current.tracking_uri,\n', "", (SETTINGS,),
    ),
    Fault(
        "the folder of a relative tracking database is not quoted", "cluster/settings.py",
        '_sqlite_uri(_absolute_path("."))', '("sqlite:///" + str(_absolute_path(".")))', (SETTINGS,),
    ),
    Fault("a size's prefixes are binary", "cluster/settings.py", "* 1000 **", "* 1024 **", (SETTINGS,)),
    Fault("S3 is tried once", "cluster/storage.py", "attempts: int = 3", "attempts: int = 1", (STORAGE,)),
    # Verdicts, the served network, the endpoint, settings and S3, the selection rule and the run store.
    Fault(
        "one-region: no off-centre", "jobs/claims/verdicts.py",
        '        and points["centre_radius"] > OFF_CENTRE * points["mean_radius"]\n', "", (VERDICTS,),
    ),
    Fault(
        "one-region: no core", "jobs/claims/verdicts.py",
        '        and points["core_distance"] < NEAR_NORMAL_CORE\n', "", (VERDICTS,),
    ),
    Fault(
        "one-region: no coherence", "jobs/claims/verdicts.py",
        'points["coherent"]\n        and ', "", (VERDICTS,),
    ),
    Fault(
        "fitted always holds", "jobs/claims/verdicts.py",
        'return Verdict(_is_near_real(run, "gaussian"), evidence, rows)',
        "return Verdict(True, evidence, rows)", (VERDICTS,),
    ),
    Fault(
        "fitted by diagonal", "jobs/claims/verdicts.py",
        '_is_near_real(run, "gaussian")', '_is_near_real(run, "diagonal")', (VERDICTS,),
    ),
    Fault(
        "vae-radius always holds", "jobs/claims/verdicts.py",
        'holds = abs(mean_radii["vae"] / sqrt_z_dim - 1) <= RADIUS_TOLERANCE', "holds = True", (VERDICTS,),
    ),
    Fault(
        "vae-radius of the AE", "jobs/claims/verdicts.py",
        'holds = abs(mean_radii["vae"] /', 'holds = abs(mean_radii["near-ae"] /', (VERDICTS,),
    ),
    Fault(
        "vae-radius one-sided", "jobs/claims/verdicts.py",
        'holds = abs(mean_radii["vae"] / sqrt_z_dim - 1) <=',
        'holds = mean_radii["vae"] / sqrt_z_dim - 1 <=', (VERDICTS,),
    ),
    Fault(
        "reconstruct always holds", "jobs/claims/verdicts.py",
        'holds = _is_near_real(run, "reconstructions") and task["psnr"] >= task["mean_psnr"] + VISIBLE_PSNR',
        "holds = True", (VERDICTS,),
    ),
    Fault(
        "reconstruct holds for one constant image", "jobs/claims/verdicts.py",
        ' and task["psnr"] >= task["mean_psnr"] + VISIBLE_PSNR', "", (VERDICTS,),
    ),
    Fault(
        "a task holds for one constant image", "jobs/claims/verdicts.py",
        'baseline = max(task["input_psnr"], task["mean_psnr"])', 'baseline = task["input_psnr"]', (VERDICTS,),
    ),
    Fault(
        "a task may be worse than its input", "jobs/claims/verdicts.py",
        'baseline = max(task["input_psnr"], task["mean_psnr"])', 'baseline = task["mean_psnr"]', (VERDICTS,),
    ),
    Fault(
        "visible psnr 1.5", "jobs/claims/verdicts.py",
        "VISIBLE_PSNR = 0.5 ", "VISIBLE_PSNR = 1.5 ", (VERDICTS,),
    ),
    Fault(
        "visible psnr 0.1", "jobs/claims/verdicts.py",
        "VISIBLE_PSNR = 0.5 ", "VISIBLE_PSNR = 0.1 ", (VERDICTS,),
    ),
    Fault(
        "off centre 0.4", "jobs/claims/verdicts.py",
        "OFF_CENTRE = 0.1 ", "OFF_CENTRE = 0.4 ", (VERDICTS,),
    ),
    Fault(
        "correlated 1", "jobs/claims/verdicts.py",
        "CORRELATED = 2.0 ", "CORRELATED = 1.0 ", (VERDICTS,),
    ),
    Fault(
        "correlated at 0.03", "jobs/claims/verdicts.py",
        "MIN_CORRELATION = 0.05 ", "MIN_CORRELATION = 0.03 ", (VERDICTS,),
    ),
    Fault(
        "core 0.06", "jobs/claims/verdicts.py",
        "NEAR_NORMAL_CORE = 0.03 ", "NEAR_NORMAL_CORE = 0.06 ", (VERDICTS,),
    ),
    Fault(
        "half 0.4", "jobs/study/findings.py",
        "HALF = 0.5 ", "HALF = 0.41 ", (VERDICTS,),
    ),
    Fault(
        "radius tolerance 0.3", "jobs/study/findings.py",
        "RADIUS_TOLERANCE = 0.1 ", "RADIUS_TOLERANCE = 0.3 ", (VERDICTS,),
    ),
    Fault(
        "near real ignores real", "jobs/claims/verdicts.py",
        ">= NEAR_REAL * _real_rate(run)", ">= NEAR_REAL", (VERDICTS,),
    ),
    Fault(
        "claims hold if no real image shows a face", "jobs/claims/verdicts.py",
        "return _real_rate(run) >= HALF", "return True", (VERDICTS,),
    ),
    Fault(
        "recolor vs gray alone", "jobs/claims/verdicts.py",
        'baseline = max(task["input_chroma_psnr"], task["mean_chroma_psnr"])',
        'baseline = task["input_chroma_psnr"]', (VERDICTS,),
    ),
    Fault(
        "ae-random ignores cubes", "jobs/claims/verdicts.py",
        "max(_rate(normal), max_cube_rate) <=", "_rate(normal) <=", (VERDICTS,),
    ),
    Fault(
        "kl-factor: any fall", "jobs/claims/verdicts.py",
        "psnr_falls = all(", "psnr_falls = any(", (VERDICTS,),
    ),
    Fault(
        "kl-factor: a fall by nothing", "jobs/claims/verdicts.py",
        "_psnr(smaller) - _psnr(larger) >= EQUAL_PSNR", "_psnr(smaller) > _psnr(larger)", (VERDICTS,),
    ),
    Fault(
        "vae-origin: a fall by one image", "jobs/claims/verdicts.py",
        'rates[20.0] < rates[1.0] and rates_differ(rates[20.0], rates[1.0], run.options["judged"])',
        "rates[20.0] < rates[1.0]", (VERDICTS,),
    ),
    Fault(
        "vae-origin: the rate may rise", "jobs/claims/verdicts.py",
        "rates[20.0] < rates[1.0] and rates_differ", "rates_differ", (VERDICTS,),
    ),
    Fault(
        "the noise of a claim may be overridden", "jobs/claims/job.py",
        '"loss.kl_factor", "task.")', '"loss.kl_factor", "task.kind")', ("tests/jobs/claims/test_claims.py",),
    ),
    Fault(
        "kl-factor: no significance", "jobs/claims/verdicts.py",
        'last_rate > first_rate and rates_differ(last_rate, first_rate, first.options["judged"])',
        "last_rate > first_rate", (VERDICTS,),
    ),
    Fault(
        "kl-factor: rate may fall", "jobs/claims/verdicts.py",
        "last_rate > first_rate and rates_differ", "rates_differ", (VERDICTS,),
    ),
    Fault(
        "z-dim: beyond ignored", "jobs/claims/verdicts.py",
        "(not is_sufficient or gain_above < VISIBLE_PSNR)", "True", (VERDICTS,),
    ),
    Fault(
        "z-dim faces at 512", "jobs/claims/catalog.py",
        "z_dim=200, is_sufficient=False", "z_dim=512, is_sufficient=False", (VERDICTS,),
    ),
    Fault(
        "z-dim faces sufficient", "jobs/claims/catalog.py",
        "z_dim=200, is_sufficient=False", "z_dim=200, is_sufficient=True", (VERDICTS,),
    ),
    Fault(
        "z-dim fashion not sufficient", "jobs/claims/catalog.py",
        "z_dim=32, is_sufficient=True", "z_dim=32, is_sufficient=False", (VERDICTS,),
    ),
    Fault(
        "reconstruct random seed", "serving/http/operations.py",
        "torch.Generator().manual_seed(seed)", "torch.Generator().manual_seed(torch.seed())", (API_IMAGES,),
    ),
    Fault(
        "AWS_ENDPOINT_URL not exported", "cluster/settings.py",
        '"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"', '"AWS_ENDPOINT_URL_S3"', (SETTINGS,),
    ),
    Fault(
        "S3 no retry strategy", "cluster/storage.py",
        "max_attempts=attempts", "max_attempts=1", (STORAGE,),
    ),
    Fault(
        "sync batch norm not folded: exact type", "serving/runtime/model_loading.py",
        "if isinstance(layer, nn.BatchNorm2d):", "if type(layer) is nn.BatchNorm2d:", (MODEL_LOADING,),
    ),
    Fault(
        "encoder not folded", "serving/runtime/model_loading.py",
        'for name, transposed in (("encoder", False), ("decoder", True)):',
        'for name, transposed in (("decoder", True),):', (MODEL_LOADING,),
    ),
    Fault(
        "fold edits the model in place", "serving/runtime/model_loading.py",
        "    model = copy.deepcopy(model)\n", "", (MODEL_LOADING,),
    ),
    Fault(
        "served encoder gets 0 to 255", "serving/runtime/model_loading.py",
        "model.encode(to_float(images)).mean", "model.encode(to_float(images) * 255).mean", (MODEL_LOADING,),
    ),
    Fault(
        "decode without sigmoid", "aecore/model/autoencoder.py",
        "to_uint8(torch.sigmoid(self.logits(z)))", "to_uint8(self.logits(z))", (AUTOENCODER,),
    ),
    Fault(
        "from_latent transposed wrongly", "serving/runtime/model_loading.py",
        "weight.data = weight.data.t().contiguous().t()",
        "weight.data = weight.data.t().contiguous().view_as(weight.data)", (MODEL_LOADING,),
    ),
    Fault(
        "z_dim of statistics unchecked", "serving/runtime/model_loading.py",
        "if stats_z_dim != z_dim:", "if False:", (MODEL_LOADING,),
    ),
    Fault(
        "selection: slack ignored", "jobs/tune/selection.py",
        "if m.psnr >= min_psnr", "if True", ("tests/jobs/tune/test_selection.py",),
    ),
    Fault(
        "selection: best psnr wins", "jobs/tune/selection.py",
        "slack))[::-1]", "slack))", ("tests/jobs/tune/test_selection.py",),
    ),
    Fault(
        "selection: strict slack", "jobs/tune/selection.py",
        "m.psnr >= min_psnr", "m.psnr > min_psnr", ("tests/jobs/tune/test_selection.py",),
    ),
    Fault(
        "selection: front keeps beaten models", "jobs/tune/selection.py",
        "if not front or model.distance < front[-1].distance:", "if True:", ("tests/jobs/tune/test_selection.py",),
    ),
    Fault(
        "run store: the epoch itself counts as an earlier one", "jobs/run_store.py",
        "self.epoch_metrics(before - 1)", "self.epoch_metrics(before)", ("tests/jobs/test_run_store.py",),
    ),
    Fault(
        "an epoch's hours start from zero", "jobs/train/worker.py",
        "run_store.last_metric(devices.metric, before=epoch.epoch) + held", "held",
        ("tests/jobs/train/test_worker.py",),
    ),
    Fault(
        "hours count one worker", "jobs/train/devices.py",
        '"core_hours", world.size *', '"core_hours", 1 *', ("tests/jobs/train/test_devices.py",),
    ),
    Fault(
        "hours count whole GPUs", "jobs/train/devices.py",
        "world.size * gpu_share", "world.size", ("tests/jobs/train/test_devices.py",),
    ),
    Fault(
        "run store: after inclusive", "jobs/run_store.py",
        "if epoch > after}", "if epoch >= after}", ("tests/jobs/test_run_store.py",),
    ),
    Fault(
        "api: seed of 16 bits", "serving/http/api.py",
        "secrets.randbelow(1 << 32) if seed is None", "secrets.randbelow(1) if seed is None", (API,),
    ),
    Fault(
        "api: seed 0 is no seed", "serving/http/api.py",
        "if seed is None else seed", "if not seed else seed", (API,),
    ),
    Fault(
        "api: body limit off by one", "serving/http/api.py",
        "if len(body) + len(chunk) > max_bytes:", "if len(body) + len(chunk) >= max_bytes:", (API,),
    ),
    # Campaigns, search spaces, layouts, locks, proxies and the registry.
    Fault(
        "a dead model sets the PSNR that the rule starts from", "jobs/tune/selection.py",
        "[model for model in models if model.alive]", "list(models)", (SELECTION,),
    ),
    Fault(
        "a dead model may be on the Pareto front", "jobs/tune/selection.py",
        "(m for m in models if m.alive)", "models", (SELECTION,),
    ),
    Fault(
        "the sampler of the highest distance is served", "jobs/tune/selection.py",
        "best = min(distances, key=distances.__getitem__)", "best = max(distances, key=distances.__getitem__)",
        (SELECTION,),
    ),
    Fault(
        "a point has the name of its worst seed", "jobs/tune/selection.py",
        "best = min(models, key=lambda model: model.distance)", "best = max(models, key=lambda model: model.distance)",
        (SELECTION,),
    ),
    Fault(
        "one standard error of the lead is no noise", "jobs/tune/selection.py",
        "if lead >= 2 * error:", "if lead >= 1 * error:", (SELECTION,),
    ),
    Fault(
        "the variance between seeds is biased", "jobs/tune/selection.py",
        "sum(len(d) - 1 for d in distances)", "sum(len(d) for d in distances)", (SELECTION,),
    ),
    Fault(
        "a point is dead only if all its seeds are", "jobs/tune/selection.py",
        "all(model.alive for model in models)", "any(model.alive for model in models)", (SELECTION,),
    ),
    Fault(
        "a front that is cut by the half goes on", "jobs/tune/stopping.py",
        "(ranks <= ranks[row]).sum() <=", "(ranks < ranks[row]).sum() <", ("tests/jobs/tune/test_stopping.py",),
    ),
    Fault(
        "the last epoch is a rung", "jobs/tune/stopping.py",
        "if epoch < optim.epochs]", "]", ("tests/jobs/tune/test_stopping.py",),
    ),
    Fault(
        "a trial is compared at one rung", "jobs/tune/stopping.py", "NUM_RUNGS = 2", "NUM_RUNGS = 1",
        ("tests/jobs/tune/test_stopping.py",),
    ),
    Fault(
        "core hours count as GPU hours", "jobs/tune/campaign.py",
        " if span.unit == self.unit]", "]", (RUNNER,),
    ),
    Fault(
        "a model counts as dead during the KL's warm-up", "jobs/tune/stopping.py",
        " and trial.epoch >= recipe.at(trial.point).loss.kl_warmup", "", (RUNNER,),
    ),
    Fault(
        "search.stop=none is ignored", "jobs/tune/stopping.py",
        'recipe.search.stop == "none" or ', "", (RUNNER,),
    ),
    Fault(
        "a bad seed of a point is stopped", "jobs/tune/stopping.py",
        " or trial.replicate_of:", ":", (RUNNER,),
    ),
    Fault(
        "trials of other lengths are compared", "jobs/tune/stopping.py",
        "is not None and t.epochs == trial.epochs]", "is not None]", (RUNNER,),
    ),
    Fault(
        "a campaign ends before its stopped trials are saved", "jobs/tune/runner.py",
        " and self._all_saved()", "", (RUNNER,),
    ),
    Fault(
        "a checkpoint within the last epoch counts as that of the epoch", "jobs/tune/runner.py",
        "if epochs < trial.epoch:", "if epochs < trial.epoch - 1:", (RUNNER,),
    ),
    Fault(
        "an epoch whose last step diverged is stored", "aecore/training/loop.py",
        "        check_metrics(run, metrics)\n", "", (LOOP,),
    ),
    Fault(
        "a full cache disk ends a trial without a retry", "jobs/tune/trial.py",
        "except CacheSpaceError:", "except ZeroDivisionError:", ("tests/jobs/tune/test_trial.py",),
    ),
    Fault(
        "the end of a trial that Tune did not get is lost", "jobs/tune/runner.py",
        "epochs(after=trial.epoch)", "epochs(after=trial.epochs)", (RUNNER,),
    ),
    Fault(
        "a trial that goes on counts twice in the search", "jobs/tune/runner.py",
        "None if trial in self._resumable else self._values(trial)", "self._values(trial)", (RUNNER,),
    ),
    Fault(
        "listeners see the campaign while it changes", "jobs/tune/runner.py",
        "copy.deepcopy(self.campaign)", "self.campaign", (RUNNER,),
    ),
    Fault(
        "the runs of a lost driver are locked one after the other", "jobs/tune/runner.py",
        "ThreadPoolExecutor(len(interrupted))", "ThreadPoolExecutor(1)", (RUNNER,),
    ),
    Fault(
        "a campaign is ranked while another process runs it", "jobs/tune/job.py",
        "with lock_campaign(run.campaign.campaign):", "if True:", (RUNNER,),
    ),
    Fault(
        "a campaign is not read again under its lock", "jobs/tune/job.py",
        "            run = _open_run(recipe, stem, manifest)  #", "            #", (RUNNER,),
    ),
    Fault(
        "a campaign whose run was deleted in MLflow is not logged", "jobs/tune/records.py",
        "and tracking.reopen_run(self.campaign.run_id)", "", ("tests/jobs/tune/test_records.py",),
    ),
    Fault(
        "a campaign waits forever for a checkpoint", "jobs/tune/runner.py",
        "if time.monotonic() < deadline:", "if True:", (RUNNER,),
    ),
    Fault(
        "a campaign without a model ends with exit status 0", "jobs/tune/job.py",
        "    if not campaign.best:\n        raise RuntimeError", "    if False:\n        raise RuntimeError", (RUNNER,),
    ),
    Fault(
        "a log range is uniform", "aecore/search_space.py",
        'if self.kind == "log":\n            return self.nearest(math.exp',
        "if False:\n            return self.nearest(math.exp",
        (SEARCH_SPACE,),
    ),
    Fault(
        "an int range lacks its upper end", "aecore/search_space.py",
        "int(self.low + fraction * (self.high - self.low + 1))", "int(self.low + fraction * (self.high - self.low))",
        (SEARCH_SPACE,),
    ),
    Fault(
        "a space of one point more than its trials is a grid", "aecore/search_space.py",
        "grid_size(space) <= trials", "grid_size(space) <= trials + 1", (SEARCH_SPACE,),
    ),
    Fault(
        "a bool is a number of a range", "aecore/search_space.py",
        " and not isinstance(value, bool)", "", (SEARCH_SPACE,),
    ),
    Fault(
        "numbers of a list keep their order", "aecore/search_space.py",
        "sorted(text) if text and", "list(text) if text and", (SEARCH_SPACE,),
    ),
    Fault(
        "val is a class", "aecore/data/layout.py", '"val": "valid", ', "", (LAYOUT,),
    ),
    Fault(
        "a name of two splits is one of them", "aecore/data/layout.py",
        "splits.pop() if len(splits) == 1 else None", "splits.pop() if splits else None", (LAYOUT,),
    ),
    Fault(
        "classes that no training image has are silent", "aecore/data/layout.py",
        "if train and names - train:", "if False:", (LAYOUT,),
    ),
    Fault(
        "a folder lies beside itself", "aecore/data/layout.py",
        "image_folders - {folder}", "image_folders", (LAYOUT,),
    ),
    Fault(
        "masks are images", "aecore/data/layout.py", 'reasons[path] = "mask"', "pass", (LAYOUT,),
    ),
    Fault(
        "a dead process of this machine keeps its lease", "cluster/lock.py",
        '_start_ticks(owner["pid"]) == owner["started"]', "True", (LOCK,),
    ),
    Fault(
        "a renewed lease runs out", "cluster/lock.py",
        "(etag == watched and time.monotonic() > deadline)", "(watched and time.monotonic() > deadline)", (LOCK,),
    ),
    Fault(
        "a lock's file stays behind", "cluster/lock.py",
        "os.unlink(path)\n            os.rmdir(folder)", "os.rmdir(folder)", (LOCK,),
    ),
    Fault(
        "a lease is written without a condition", "cluster/lock.py",
        'condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}', "condition = {}", (LOCK,),
    ),
    Fault(
        "a lease of another process is deleted", "cluster/lock.py",
        "if self.is_own(self.read()[1]):", "if True:", (LOCK,),
    ),
    Fault(
        "a lease whose first response was lost is awaited", "cluster/lock.py",
        "if lease.is_own(owner):", "if False:", (LOCK,),
    ),
    Fault("a lease that is not renewed is not logged", "cluster/lock.py", "age > LEASE_S", "False", (LOCK,)),
    Fault(
        "a user's own token is no secret", "cluster/settings.py",
        "return re.fullmatch(SECRET_NAME, name, re.IGNORECASE) is not None", "return False", (SETTINGS,),
    ),
    Fault(
        "the region of a profile is ignored", "cluster/storage.py",
        'Session().get_config_variable("region") or', "", ("tests/cluster/test_storage.py",),
    ),
    Fault(
        "a zombie keeps its lease", "cluster/lock.py", 'if fields[0] not in ("Z", "X") else None', "", (LOCK,),
    ),
    Fault(
        "a text without credentials is lost", "cluster/settings.py",
        'return re.sub(rf"([?&;]', 're.sub(rf"([?&;]', (SETTINGS,),
    ),
    Fault(
        "networks in NO_PROXY are ignored", "cluster/network.py",
        "any(address in network for network in map(_network, _no_proxy()) if network)", "False", (NETWORK,),
    ),
    Fault(
        "a proxy's password is shown", "cluster/network.py",
        'label = f"{name}={hide_credentials(value)}"', 'label = f"{name}={value}"', (NETWORK,),
    ),
    Fault(
        "NO_PROXY loses its own names", "cluster/network.py",
        "names += [host for", "names = [host for", (NETWORK,),
    ),
    Fault(
        "a cut read of a remote file is repeated from its start", "aecore/data/remote_path.py",
        "divmod(self._position + done, BLOCK_BYTES)", "divmod(self._position, BLOCK_BYTES)", (REMOTE_PATH,),
    ),
    Fault(
        "a HEAD request gets a body", "serving/http/middleware.py",
        'message = {**message, "body": b""}', "pass", (REQUEST_FORMS,),
    ),
    Fault(
        "a request beyond the buffer is read", "serving/http/middleware.py",
        "if self._buffered_bytes > self._limits.max_buffered_bytes:", "if False:", (API,),
    ),
    Fault(
        "the bytes of answered requests count on", "serving/http/middleware.py",
        "self._buffered_bytes -= body_bytes", "pass", (API,),
    ),
    Fault(
        "infinite metrics go to MLflow", "cluster/tracking.py",
        " if math.isfinite(value)]", "]", ("tests/cluster/test_tracking.py", "tests/cluster/test_mlflow_runs.py"),
    ),
    Fault(
        "a dead database of MLflow is tried for minutes", "cluster/tracking.py",
        "create_engine(uri, poolclass=NullPool).connect().close()", "create_engine(uri)",
        ("tests/cluster/test_tracking.py",),
    ),
    Fault(
        "a deleted run of MLflow stays deleted", "cluster/tracking.py",
        "client().restore_run(run_id)", "pass", ("tests/cluster/test_tracking.py", "tests/cluster/test_mlflow_runs.py"),
    ),
    Fault(
        "a continued run keeps the version of its first model", "jobs/promote.py",
        "return {tag: version.tags.get(tag, stored[tag]) for tag in tags} == tags", "return True",
        ("tests/jobs/test_promote.py",),
    ),
    Fault(
        "an epoch that is trained again replaces its metrics", "jobs/tune/campaign.py",
        "if epoch <= self.epoch:", "if epoch < self.epoch:", (RUNNER, "tests/jobs/tune/test_records.py"),
    ),
    Fault(
        "a PIL image keeps its camera's rotation", "aecore/data/image_input.py",
        "ImageOps.exif_transpose(images)", "images",
        ("tests/aecore/data/test_image_input.py",),
    ),
    Fault(
        "a PIL image of 16 bits is cut off at 255", "aecore/data/image_input.py",
        'if image.mode.startswith("I")', "if False", ("tests/aecore/data/test_image_input.py",),
    ),
    Fault(
        "floats are cut off in place of rounded", "aecore/data/image_input.py",
        "np.rint(array.astype(np.float32) * 255).astype(np.uint8)", "(array.astype(np.float32) * 255).astype(np.uint8)",
        ("tests/aecore/data/test_image_input.py",),
    ),
    # Processes that end, and what the user reads of it.
    Fault(
        "an existing folder of Ray is not checked", "cluster/ray_connection.py",
        "folder if os.path.exists(folder) else folder.parent", "folder.parent",
        ("tests/cluster/test_ray_connection.py",),
    ),
    Fault(
        "an existing token of Ray stays readable", "cluster/ray_connection.py",
        "st_mode & 0o700", "st_mode & 0o777", ("tests/cluster/test_ray_connection.py",),
    ),
    Fault(
        "a Ray whose node process exits is not started again", "cluster/ray_connection.py",
        "MAX_STARTS = 3", "MAX_STARTS = 1", ("tests/cluster/test_ray_connection.py",),
    ),
    Fault(
        "a training does not say what it waits for", "jobs/train/ray_trainer.py",
        "if capacity < self.scale.min_workers:", "if not capacity:", ("tests/jobs/train/test_placement.py",),
    ),
    Fault(
        "a worker that lost its connection is named for the one that died", "jobs/train/ray_trainer.py",
        "key=lambda failure: _dead_actor(failure) is None", "key=lambda failure: 0",
        ("tests/jobs/train/test_placement.py",),
    ),
    Fault(
        "a process keeps its free memory", "cluster/memory.py",
        "malloc_trim(0)", "pass", ("tests/cluster/test_memory.py",),
    ),
    Fault(
        "a worker gets CPUs of two nodes", "jobs/train/placement.py",
        "sum(count // share for count in cpus) >=", "sum(cpus) // share >=", ("tests/jobs/train/test_placement.py",),
    ),
    Fault(
        "a cluster of 0.3 CPUs has resources for two workers of 0.1", "jobs/train/placement.py",
        "_ray_units(node.get(name, 0)) // max(1, _ray_units(amount))", "int(node.get(name, 0) // amount)",
        ("tests/jobs/train/test_placement.py",),
    ),
    Fault(
        "the splits of a dataset are checked against the cache's limit one by one", "aecore/data/cache_eviction.py",
        "sum(entries.values())", "max(entries.values())", ("tests/aecore/data/test_cache_eviction.py",),
    ),
    Fault(
        "a training fills the cache with a split though the next one exceeds its limit", "jobs/train/worker.py",
        "check_caches(recipe, dataset, worker.device, worker.gpu_share)", "...", ("tests/jobs/train/test_worker.py",),
    ),
    Fault(
        "splits that a GPU takes need space in the node cache together", "jobs/train/worker.py",
        '(cache == "auto" and not on_gpu)', 'cache != "none"', ("tests/jobs/train/test_worker.py",),
    ),
    Fault(
        "an Arrow dictionary of images counts for each batch of rows", "aecore/data/readers.py",
        "pa.types.is_dictionary(leaf_type)", "False", ("tests/aecore/data/test_tables.py",),
    ),
    Fault(
        "--fresh deletes a run before its task is checked", "jobs/train/job.py",
        "make_eval_pair(recipe, Batch.whole(", "(lambda *_: ...)(recipe, Batch.whole(", (TRAIN,),
    ),
    Fault(
        "--fresh deletes a run before the image size is checked", "jobs/train/job.py",
        "ImageShape(dataset.manifest.size, dataset.manifest.channels)", "...", (TRAIN,),
    ),
    Fault(
        "--fresh deletes a run before the node cache of a local Ray is checked", "jobs/train/job.py",
        "check_node_cache(recipe, dataset, on_gpu=on_gpu)", "...", (TRAIN,),
    ),
    Fault(
        "a checkpoint overwrites the one of its step that the run resumed from", "aecore/training/checkpoint.py",
        'path = f"{path}-{_order(newest)[1] + 1}" if is_complete else newest', "path = newest", (CHECKPOINT,),
    ),
    Fault(
        "two checkpoints of a step both count", "aecore/training/checkpoint.py",
        " or _step(path) in map(_step, valid_losses)", "", (CHECKPOINT,),
    ),
    Fault(
        "retries of a failing store fill it with unfinished checkpoints", "aecore/training/checkpoint.py",
        "if is_complete else newest", "if newest != path or is_complete else newest", (CHECKPOINT,),
    ),
    Fault(
        "a small Parquet file fills the memory by its dictionary", "aecore/data/readers.py",
        "remaining -= batch.nbytes", "remaining -= 0", ("tests/aecore/data/test_tables.py",),
    ),
    Fault(
        "a batch of a row group fills the memory by its dictionary", "aecore/data/readers.py",
        "max(1, MAX_TABLE_BYTES // max(1, length))", "MAX_TABLE_BYTES", ("tests/aecore/data/test_tables.py",),
    ),
    Fault(
        "the validation images of an epoch have no limit in bytes", "aecore/training/loop.py",
        "min(subset_size, MAX_VALID_BYTES // (image.size**2 * image.channels))", "subset_size",
        (f"{LOOP}::test_each_epoch_but_the_last_is_validated_on_evenly_spaced_images_of_at_most_1_gib",),
    ),
    Fault(
        "the attributes of a stream are those of other images", "jobs/train/worker.py",
        "isinstance(loader, StreamLoader)", "False", (TRAIN,),
    ),
    Fault(
        "spaced images of a stream have the rows of the sampled shards, not of the split", "aecore/data/dataset.py",
        "rows - chosen_offsets[position] + offsets[chosen[position]]", "rows",
        ("tests/aecore/data/test_dataset.py",),
    ),
    Fault(
        "a stream's rows of padding count as images for batch norm", "jobs/train/worker.py",
        "-(-max_local // steps) - padding", "-(-max_local // steps)", (TRAIN,),
    ),
    Fault(
        "an elastic stream under batch norm is checked for the most workers alone", "jobs/train/worker.py",
        "range(max(1, scale.min_workers), max(1, scale.max_workers) + 1)", "[max(1, scale.max_workers)]", (TRAIN,),
    ),
    Fault(
        "an epoch's only batch is not compiled", "aecore/training/compiled.py",
        "run.recipe.optim.batch if run.steps_per_epoch > 1 else len(run.train)", "run.recipe.optim.batch", (COMPILED,),
    ),
    Fault(
        "a wait for gradients that was not measured is reported as none", "aecore/training/gradient_exchange.py",
        "* fmean(seconds) if seconds else None", "* fmean(seconds) if seconds else 0.0",
        ("tests/aecore/training/test_gradient_exchange.py",),
    ),
    Fault(
        "a worker takes its GPU for whole", "jobs/train/ray_trainer.py",
        'gpu_share=resources.get("GPU", 1.0)', "gpu_share=1.0", ("tests/jobs/train/test_ray_trainer.py",),
    ),
    Fault(
        "a run that is half deleted is resumed", "jobs/run_store.py",
        "delete_folder(fs, root)\n        # By its key", "# By its key", (TRAIN,),
    ),
    Fault(
        "an epoch that has only begun does not count", "aecore/training/checkpoint.py",
        ' + bool(progress.get("sums", {}).get("count"))', "", (TRAIN,),
    ),
    Fault(
        "other points leave a finished run as it is", "jobs/run_store.py",
        "(model_recipe.optim.epochs, model_recipe.points) == (recipe.optim.epochs, recipe.points)",
        "model_recipe.optim.epochs == recipe.optim.epochs", (TRAIN,),
    ),
    Fault(
        "a stop during the last validation is ignored", "jobs/train/worker.py",
        "if consensus.stop_requested():", "if False:", (TRAIN,),
    ),
    Fault(
        "a process that lost its lease goes on", "cluster/lock.py", "os._exit(1)", "return", (LOCK,),
    ),
    Fault(
        "the checkpoints of a successor are deleted", "aecore/training/checkpoint.py",
        "if _step(path) > step and path not in earlier:", "if False:",
        ("tests/aecore/training/test_checkpoint.py",),
    ),
    Fault(
        "the epoch of a stream goes on in the planned order", "aecore/training/loop.py",
        "if state.streamed or not run.train.resumable:", "if not run.train.resumable:", (LOOP,),
    ),
    Fault(
        "each worker measures with its own running statistics", "aecore/training/loop.py",
        "dist.broadcast(buffer, 0)", "pass", (LOOP,),
    ),
    Fault(
        "a filled cache entry is refused", "aecore/data/cache_eviction.py",
        'if not max_bytes and _allocated_bytes(entry / "images.u8") >= size:', "if False:",
        ("tests/aecore/data/test_cache_eviction.py",),
    ),
    Fault(
        "a trial's process keeps its free memory", "jobs/tune/trial.py",
        "        release_memory()", "        pass", ("tests/jobs/tune/test_trial.py",),
    ),
    Fault(
        "a replica keeps the memory of a replaced model", "serving/runtime/model_reload.py",
        "            release_memory()", "            pass", ("tests/serving/runtime/test_model_reload.py",),
    ),
    Fault(
        "Optuna logs each point of a search", "jobs/tune/plan.py",
        "optuna.logging.set_verbosity(optuna.logging.WARNING)", "pass", ("tests/jobs/tune/test_plan.py",),
    ),
    Fault(
        "Optuna logs each trial of a report's chart", "jobs/tune/campaign_charts.py",
        "    quiet_optuna()\n", "", ("tests/jobs/tune/test_report.py",),
    ),
    Fault(
        "a campaign that has ended is running in MLflow", "jobs/tune/mlflow_overview.py",
        "if (campaign.state, summary) == self._logged:", "if self._logged and summary == self._logged[1]:",
        ("tests/jobs/tune/test_records.py",),
    ),
    Fault(
        "a submitted job writes its report to the folder that Ray deletes", "jobs/report_folder.py",
        'submitted_job() and "ZPOINT_HOME" not in os.environ', "False", ("tests/jobs/test_report_folder.py",),
    ),
    Fault(
        "the report of a job with a home goes to the store", "jobs/report_folder.py",
        'submitted_job() and "ZPOINT_HOME" not in os.environ', "submitted_job()",
        ("tests/jobs/test_report_folder.py",),
    ),
    Fault(
        "claims are trained on a dataset too small to be measured", "jobs/claims/job.py",
        "        check_image_count(manifest, DEFAULT_LIMIT)\n", "",
        ("tests/jobs/claims/test_claims.py",),
    ),
    Fault(
        "claims about MNIST are checked on faces", "jobs/claims/job.py",
        "        _check_source(name, uri, manifest.dataset)\n", "",
        ("tests/jobs/claims/test_claims.py",),
    ),
    Fault(
        "a longer run leads a campaign without a note", "jobs/tune/campaign.py",
        "trial.epochs > epochs", "False",
        ("tests/jobs/tune/test_runner.py",),
    ),
    Fault(
        "a training that is refused deletes the earlier run", "jobs/train/job.py",
        "            _check_resources(recipe, dataset)\n", "",
        ("tests/jobs/train/test_train.py::test_a_refused_command_leaves_the_finished_run_as_it_was",),
    ),
    Fault(
        "a trace of the dashboard with a 404 in it counts as an unknown job", "jobs/commands/submit.py",
        'str(error).startswith("Request failed with status code 404")', '"404" in str(error)',
        ("tests/jobs/commands/test_submit.py",),
    ),
    Fault(
        "the first page of MLflow's runs counts as all", "cluster/tracking.py",
        "while page.token:", "while False:", ("tests/cluster/test_mlflow_runs.py",),
    ),
    Fault(
        "the first seed of a point has no label", "jobs/tune/campaign.py",
        '{"optim.seed": self.recipe["optim"]["seed"]}', '{"optim.seed": ""}', ("tests/jobs/tune/test_table.py",),
    ),
    Fault(
        "the node cache is opened to append", "aecore/data/cache_eviction.py",
        'open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")', 'open(path, "ab")',
        ("tests/aecore/data/test_cache_eviction.py",),
    ),
    Fault(
        "a pixel may be missing", "aecore/data/readers.py",
        ", null_values=[])", ")", ("tests/aecore/data/test_tables.py",),
    ),
    Fault(
        "a failed download deletes that of another process", "aecore/data/download.py",
        "os.rmdir(root.path)", "__import__('shutil').rmtree(root.path)", ("tests/aecore/data/test_download.py",),
    ),
    Fault(
        "a stream's batches may be empty", "jobs/train/worker.py",
        "-(-count // workers) < steps:", "False:", (TRAIN,),
    ),
    Fault(
        "a checked shard of the node cache keeps its old time", "aecore/data/node_cache.py",
        "            os.utime(slot.lock.fileno())\n", "", ("tests/aecore/data/test_node_cache.py",),
    ),
    Fault(
        "an interpolation runs from its end to its start in a study", "aecore/analysis.py",
        "interpolate(z[i], z[num_pairs + i],", "interpolate(z[num_pairs + i], z[i],",
        ("tests/aecore/test_analysis.py",),
    ),
    Fault(
        "a nonfinite loss of one worker leaves the others waiting", "aecore/training/loop.py",
        "        dist.all_reduce(nonfinite_step, dist.ReduceOp.MAX)\n", "", ("tests/aecore/training/test_loop.py",),
    ),
    Fault(
        "the start of a search does not grow with its keys", "jobs/tune/plan.py",
        "2 * len(self.searched) + 2", "2 / len(self.searched) + 2", ("tests/jobs/tune/test_plan.py",),
    ),
    Fault(
        "a listed point lies beyond its range", "jobs/tune/plan.py",
        "int(d.high) + 1", "int(d.high) + 2", ("tests/jobs/tune/test_plan.py",),
    ),
    Fault(
        "a claim's images have no metrics below them", "jobs/claims/verdicts.py",
        """return format_rate_short(_rate(scores)), f"{scores['hog_frechet']:.2f}\"""", 'return ("", "")',
        ("tests/jobs/claims/test_verdicts.py",),
    ),
    Fault(
        "a refused repair deletes shards of its dataset", "jobs/ingest/job.py",
        "if not finished:  # a manifest lists these shards", "if True:", (INGEST,),
    ),
    Fault(
        "an ingest overwrites its source", "jobs/ingest/job.py", "if shards and not records:", "if False:", (INGEST,),
    ),
    Fault(
        "an ingest deletes its own lock", "jobs/ingest/job.py", '".lock/ingest"', '".ingest/lock"', (INGEST,),
    ),
    Fault(
        "a resumed ingest mixes old and new images", "jobs/ingest/job.py",
        "_discard_records(spec, edited)", "pass", (INGEST,),
    ),
    Fault(
        "the identities are those of another column", "aecore/data/parquet.py",
        'if "celeb_id" in columns:', "if False:", ("tests/aecore/data/test_tables.py",),
    ),
    Fault(
        "classes such as with_mask are masks", "aecore/data/layout.py",
        "return {folder for folder in masks if 2 * sum(is_of_image(s, folder) for s in stems[folder]) > "
        "len(stems[folder])}", "return masks", (LAYOUT,),
    ),
    Fault(
        "attributes are those of other rows", "aecore/data/attributes.py",
        " + shard_offsets(needed_shards)[position]", "", ("tests/aecore/data/test_attributes.py",),
    ),
    Fault(
        "the cache evicts for a split that does not fit", "aecore/data/cache_eviction.py",
        "if in_use + size > max_bytes:", "if False:", ("tests/aecore/data/test_cache_eviction.py",),
    ),
    Fault(
        "measurements of a shorter training count for the continued one", "jobs/study/measurements.py",
        ' | {"epochs": run.recipe.optim.epochs}', "", (MEASUREMENTS,),
    ),
    Fault(
        "the dots of many runs lie in the next sampler's row", "jobs/study/charts.py",
        "step = min(0.22, 0.8 / len(series))", "step = 0.22", ("tests/jobs/study/test_charts.py",),
    ),
    Fault(
        "the labels of matrices are cut", "jobs/study/charts.py",
        "panel_height=3.6", "panel_height=3.0", ("tests/jobs/study/test_charts.py",),
    ),
    Fault(
        "a legend of many runs takes the chart's height", "jobs/study/charts.py",
        "+ added_rows * LEGEND_ROW_HEIGHT", "+ 0 * LEGEND_ROW_HEIGHT", ("tests/jobs/study/test_charts.py",),
    ),
    Fault(
        "a cut-off library stays in torch's cache", "aecore/training/compiled.py",
        "delete_damaged_library(error)\n", "pass\n", (COMPILED,),
    ),
    Fault(
        "real images are scored on no more than the limit", "jobs/study/images.py",
        "held_out_split(dataset.manifest), num_samples)", "held_out_split(dataset.manifest), limit)", (MEASUREMENTS,),
    ),
)  # fmt: skip

# (file, change as tests/mutants.py prints it, the reason why no test can notice it)
EQUIVALENT: tuple[tuple[str, str, str], ...] = (
    (
        "serving/runtime/batching.py",
        "len(items) <= self._max_batch_size -> (len(items) < self._max_batch_size) in "
        "if len(items) <= self._max_batch_size:",
        "a request of exactly one batch is one chunk, split or not",
    ),
    (
        "aecore/latent/samplers.py",
        'True -> (False) in latents |= dict(zip(("gmm_weights", "gmm_means", "gmm_factors"), mixture, strict=True))',
        "the mixture always has three arrays",
    ),
    (
        "aecore/analysis.py",
        "2_000 -> (2001) in NUM_PATH_POINTS = 2_000 # training z-points that an interpolation may pass through",
        "the size of a subsample: none is the right one to one point",
    ),
    (
        "aecore/metrics/pixel.py",
        "31 -> (32) in indices = torch.randint(0, 2**31, (NUM_PATCHES, 3), generator=generator)",
        "any bound far above the number of positions gives uniform positions",
    ),
    (
        "aecore/data/node_cache.py",
        "time.time() - complete.st_mtime < min(TRUSTED_S, time.clock_gettime(time.CLOCK_BOOTTIME)) -> "
        "(time.time() - complete.st_mtime <= min(TRUSTED_S, time.clock_gettime(time.CLOCK_BOOTTIME))) in "
        "recent = time.time() - complete.st_mtime < min(TRUSTED_S, time.clock_gettime(time.CLOCK_BOOTTIME))",
        "two times of a clock are never equal to the nanosecond",
    ),
    (
        "aecore/data/node_cache.py",
        '0o666 -> (439) in fd = os.open(self.entry.path / f"{slot.index:05d}.crc", os.O_RDWR | os.O_CREAT, 0o666)',
        "no program executes a file of checksums",
    ),
    (
        "aecore/data/cache_eviction.py",
        '0o666 -> (439) in with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:',
        "no program executes a file of images",
    ),
    (
        "aecore/metrics/classifier.py",
        "False -> (True) in return Classifier(network.eval().requires_grad_(False), classes)",
        "the network is called in inference mode alone",
    ),
    (
        "aecore/data/loaders.py",
        "1 -> (2) in self._flat = images.reshape(len(images), -1) if len(images) else images",
        "numpy takes any negative size for the unknown one",
    ),
    (
        "aecore/data/loaders.py",
        "True -> (False) in buffer = "
        "torch.empty((len(rows), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True)",
        "pinned memory is a matter of speed, on a GPU",
    ),
    (
        "aecore/data/parquet.py",
        "return [] -> return None",
        "no names and an empty list of them are both false",
    ),
    (
        "jobs/train/stopping.py",
        "now - self._last_save >= 60 * self.plan.minutes -> (now - self._last_save > 60 * self.plan.minutes) in "
        "if self.plan.minutes and now - self._last_save >= 60 * self.plan.minutes:",
        "a clock never shows exactly the limit",
    ),
    (
        "aecore/model/corruptions.py",
        "make_batch_noise(recipe.optim.seed, batch, step, FLIP).uniform() < 0.5 -> "
        "(make_batch_noise(recipe.optim.seed, batch, step, FLIP).uniform() <= 0.5) in "
        "flipped = make_batch_noise(recipe.optim.seed, batch, step, FLIP).uniform() < 0.5",
        "one of 2^24 images is flipped or not",
    ),
    (
        "jobs/train/stopping.py",
        "1.0 -> (2.0) in SYNC_S = 1.0 # between two exchanges of the workers' actions",
        "a compromise between a stop's delay and the cost of an exchange: none is the right one to a second",
    ),
    (
        "jobs/study/findings.py",
        '0 -> (1) in key = rate_key(runs[0]["real"])',
        "the runs of a study have one dataset, so all of them have the rate of it",
    ),
    (
        "cluster/lock.py",
        "file.close() -> pass",
        "Python closes the file, which releases its lock, when nothing refers to it any more",
    ),
    (
        "aecore/data/remote_path.py",
        "4 -> (5) in CACHED_BLOCKS = 4 "
        "# of each open file: two shards are read from distant ranges of one zip at a time",
        "the size of a cache: the bytes read are the same",
    ),
    (
        "aecore/metrics/classifier.py",
        "2 -> (3) in "
        "layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]",
        "another small network, which recognises the images as well",
    ),
    (
        "aecore/data/layout.py",
        'zip(names[0].split("/")[:-1], names[-1].split("/")[:-1], strict=False) -> '
        "(zip(names[-1].split('/')[:-1], names[0].split('/')[:-1], strict=False)) in "
        'for first, last in zip(names[0].split("/")[:-1], names[-1].split("/")[:-1], strict=False):',
        "two lists are compared, in either order",
    ),
    (
        "jobs/study/findings.py",
        "boundary > best -> (boundary >= best) in "
        "below_half = next((boundary for boundary, rate in rates.items() if boundary > best and rate < HALF), None)",
        "the rate of the best boundary is not below a half",
    ),
    (
        "jobs/study/findings.py",
        "rates[worst] < real_rate -> (rates[worst] <= real_rate) in "
        "if rates[worst] < real_rate or not rates_differ(rates[worst], real_rate, num_samples, len(rates) + 1):",
        "equal rates do not differ",
    ),
    (
        "aecore/data/loaders.py",
        "20 -> (21) in SHUFFLE_BUFFER_BYTES = 128 << 20 # of images among which a stream is shuffled",
        "the size of a buffer, a compromise between memory and order",
    ),
)
