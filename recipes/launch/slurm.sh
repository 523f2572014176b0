#!/bin/bash
# Slurm: one run on one node or several, with eight accelerators each.
#
# Submit:  sbatch slurm.sh my_run.yaml [--key value ...]
#          Set --nodes, --gpus-per-node and --time below; LAUNCHER=ddp sbatch ... takes another launcher.
# Needs:   the recipe, its output_dir, the data and the environment of Python on a file system that all nodes share.
# Stops:   five minutes before the end of its time, or when it is preempted, the run saves a checkpoint, and the job goes
#          back into the queue; the same command goes on (docs/interruptions.md).
#SBATCH --job-name=simpo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

# A cache of models and data that all nodes see, unless one is set.
export HF_HOME="${HF_HOME:-$SLURM_SUBMIT_DIR/huggingface}"
processes=$((SLURM_JOB_NUM_NODES * ${SLURM_GPUS_ON_NODE:-8}))
set -- "$@" --launcher "${LAUNCHER:-fsdp2}" --num-processes "$processes"
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # Jobs that share a node must not share a port: each has its own by its number.
    set -- "$@" --num-machines "$SLURM_JOB_NUM_NODES" --main-process-ip "$first" \
        --main-process-port $((20000 + SLURM_JOB_ID % 10000))
fi
# One task a node, which starts the node's processes; each finds its own rank. A task that fails ends the others.
srun --ntasks-per-node=1 --kill-on-bad-exit=1 \
    bash -c '[ "$SLURM_JOB_NUM_NODES" -gt 1 ] && set -- "$@" --machine-rank "$SLURM_NODEID"; exec simpo train "$@"' bash "$@"
status=$?
# 138: the time was nearly over (SIGUSR1). 143: the job was preempted (SIGTERM). A checkpoint was saved in both cases.
if [ "$status" -eq 138 ] || [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
