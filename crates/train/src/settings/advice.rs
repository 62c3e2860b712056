//! What to say about a key that a stage does not have: what it is called here, or why it has no meaning here.

use crate::config::{Config, KeyInfo, nearest};

use super::{DpoConfig, PpoConfig, RewardConfig, SftConfig};

/// Keys of TRL, Transformers and other trainers, and what to do with them here.
const FOREIGN: &[(&str, &str)] = &[
    ("activation_offloading", "not supported; gradient_checkpointing = true saves memory"),
    ("adap_kl_ctrl", "write kl_controller = \"adaptive\" or \"fixed\""),
    ("auto_find_batch_size", "tokens_per_micro_batch bounds memory without changing the batch"),
    ("backward_batch_size", "tokens_per_micro_batch bounds memory without changing the batch"),
    ("batch_size", "write per_device_train_batch_size, times gradient_accumulation_steps for a step"),
    ("bf16", "write precision = \"bf16\" or \"f32\""),
    ("chat_template_path", "the template comes with the model's tokenizer"),
    ("cliprange_reward", "write score_clip"),
    ("data_seed", "write seed; it covers the order of rows"),
    ("dataloader_drop_last", "an epoch's last step is as short as it needs to be, and is weighed as such"),
    ("dataloader_num_workers", "rows are tokenised before the first step, on all threads"),
    ("dataloader_pin_memory", "rows are already in memory"),
    ("dataset_num_proc", "rows are tokenised on all threads; write threads"),
    ("dataset_text_field", "rows of text have the key \"text\""),
    ("deepspeed", "not supported"),
    ("disable_dropout", "no model here has dropout, so the ratio is exactly 1 on the first pass"),
    ("ds3_gather_for_generation", "generation reads the trainer's own weights"),
    ("eos_token", "it comes with the model's tokenizer"),
    ("epochs", "write num_train_epochs"),
    ("epsilon", "write cliprange"),
    ("eval_strategy", "write eval_steps"),
    ("evaluation_strategy", "write eval_steps"),
    ("fp16", "write precision = \"bf16\" or \"f32\""),
    ("fsdp", "not supported"),
    ("full_determinism", "always so: same machine, seed and inputs give the same bits"),
    ("group_by_length", "batches are not padded, so it would save nothing"),
    ("init_kl_coeff", "write init_kl_coef"),
    ("kl_ctl", "write kl_coef"),
    ("kl_penalty", "write kl_estimator"),
    ("kl_target", "write target, in nats per sequence"),
    ("label_smoothing_factor", "not supported"),
    ("load_in_4bit", "not supported"),
    ("load_in_8bit", "not supported"),
    ("local_rollout_forward_batch_size", "tokens_per_micro_batch bounds memory without changing results"),
    ("log_with", "write report_to"),
    ("logging_dir", "event files are in RUN/tensorboard"),
    ("lora_dropout", "no model here has dropout"),
    ("lora_modules_to_save", "a reward model's head is always trained and saved; nothing else can be"),
    ("lora_task_type", "it follows from the stage"),
    ("lr", "write learning_rate"),
    ("max_completion_length", "write max_length, of prompt and response together"),
    ("max_prompt_length", "write max_length, of prompt and response together"),
    ("max_new_tokens", "write response_length"),
    ("mini_batch_size", "write num_mini_batches, the number of updates in a pass"),
    ("model_init_kwargs", "the model is read from its own files"),
    ("neftune_noise_alpha", "not supported"),
    ("num_epochs", "write num_train_epochs"),
    ("num_sample_generations", "write sample_prompts and eval_steps"),
    ("optim", "the optimiser is AdamW"),
    ("output_dir", "write --out"),
    ("packing", "batches are never padded, so there is nothing to pack, and rows never see each other"),
    ("pad_to_multiple_of", "batches are never padded"),
    ("pad_token", "batches are never padded"),
    ("padding_free", "always so: batches are never padded"),
    ("ppo_epochs", "write num_ppo_epochs"),
    ("precompute_ref_batch_size", "tokens_per_micro_batch bounds memory without changing results"),
    ("push_to_hub", "models stay on this machine"),
    ("ref_model_mixup_alpha", "not supported; the reference stays as it is"),
    ("ref_model_sync_steps", "not supported; the reference stays as it is"),
    ("remove_unused_columns", "unknown columns are ignored, and counted in the pre-flight report"),
    ("resume_from_checkpoint", "write --resume"),
    ("router_aux_loss_coef", "no family with experts is supported"),
    ("run_name", "a run is named by its --out directory"),
    ("save_strategy", "write save_steps"),
    ("simpo_gamma_beta_ratio", "write simpo_gamma, which is the ratio times beta"),
    ("steps", "write max_steps or total_episodes"),
    ("sync_ref_model", "not supported; the reference stays as it is"),
    ("tf32", "write precision = \"f32\" or \"bf16\""),
    ("torch_compile", "there is no PyTorch here"),
    ("truncation_mode", "write truncation = \"keep_start\", \"drop\" or \"refuse\""),
    ("trust_remote_code", "no code from a model's directory is ever run"),
    ("use_cpu", "this build computes on the CPU"),
    ("use_dora", "not supported"),
    ("use_liger_kernel", "the head never holds all logits at once, so there is nothing to switch on"),
    ("warmup", "write warmup_steps or warmup_ratio"),
];

/// The end of the sentence "unknown setting …".
pub(crate) fn advice_for_unknown<C: Config>(key: &str) -> String {
    if let Some((_, advice)) = FOREIGN.iter().find(|(foreign, _)| *foreign == key) {
        return format!(": {advice}");
    }
    let elsewhere: Vec<&str> = tables()
        .into_iter()
        .filter(|(_, keys)| keys.iter().any(|info| info.name == key))
        .map(|(stage, _)| stage)
        .collect();
    if !elsewhere.is_empty() {
        return format!(": it belongs to stage {}", elsewhere.join(", "));
    }
    match nearest(key, C::keys().iter().map(|info| info.name)) {
        Some(near) => format!(", did you mean {near}?"),
        None => format!("; `polity train {} --help` lists them", C::STAGE),
    }
}

fn tables() -> [(&'static str, Vec<KeyInfo>); 4] {
    [
        (SftConfig::STAGE.name(), SftConfig::keys()),
        (RewardConfig::STAGE.name(), RewardConfig::keys()),
        (DpoConfig::STAGE.name(), DpoConfig::keys()),
        (PpoConfig::STAGE.name(), PpoConfig::keys()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_key_is_not_a_key_of_ours() {
        for (foreign, advice) in FOREIGN {
            for (stage, keys) in tables() {
                assert!(keys.iter().all(|info| info.name != *foreign), "{foreign} exists in {stage}");
            }
            assert!(!advice.ends_with('.') && !advice.is_empty(), "{foreign}");
        }
    }

    #[test]
    fn advice_names_keys_that_exist() {
        let known: Vec<String> =
            tables().into_iter().flat_map(|(_, keys)| keys).map(|info| info.name.to_owned()).collect();
        for (foreign, advice) in FOREIGN {
            let Some(written) = advice.strip_prefix("write ") else { continue };
            let first = written.split([' ', ',', ';']).next().unwrap();
            assert!(first.starts_with("--") || known.iter().any(|key| key == first), "{foreign}: {first}");
        }
    }
}
