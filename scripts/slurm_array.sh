#!/bin/sh
# A table as a Slurm array, one run a task. List the runs, then start as many tasks:
#
#   sh scripts/table_cifar100_same.sh --list > runs.txt
#   sbatch --array=1-$(wc -l < runs.txt) scripts/slurm_array.sh runs.txt
#
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%A_%a.log
set -eu
sed -n "${SLURM_ARRAY_TASK_ID}p" "$1" | sh
