#!/bin/bash
# sbatch deploy/slurm.sh questions.jsonl A,B,C
#SBATCH --job-name=mosaic
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
# A minute before the end of its time the batch is told to stop; the same command goes on when the job is queued again.
set -u
srun mosaic batch "$1" --models "$2" &
trap 'kill -TERM $!; wait $!; scontrol requeue "$SLURM_JOB_ID"' TERM
wait $!
