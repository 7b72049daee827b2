#!/usr/bin/env bash
# Runs the experiments behind this repository's tables, in order of value:
#
#     figure/reproduce.sh MINUTES [NAME ...]
#
# all of them or those named. After MINUTES it ends; run again, it goes on where it stopped, on another machine too if
# OUT came along. What is finished takes the place of what RESULTS had, and the tables are made anew. Environment: DATA,
# the image sets (datasets); TEACHER, a trained VDSR to distil instead of one's own; OUT, where runs go (runs/reproduce);
# RESULTS (figure/results); TABLES (figure); FLAGS, appended to every command (a rehearsal: FLAGS="--nEpochs=1 --iter=1
# --batchSize=2 --data_test=Set5", and for those of several stages --nEpochs=20 --stu_step=1).
set -uo pipefail
[[ "${1:-}" =~ ^[0-9]+$ ]] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
cd "$(dirname "$0")/.."

end=$((SECONDS + 60 * $1)); shift
only=" $* "
out=${OUT:-runs/reproduce} results=${RESULTS:-figure/results} tables=${TABLES:-figure} data=${DATA:-datasets}
teacher=${TEACHER:-$out/teacher.pth}
mkdir -p "$out" "$results"/{recipe,table2,start,width,generator,edsr,sgd}

measured= # whether there are new results
collect() { # the tables, of what is in $results
  [ -n "$measured" ] || return 0
  python -m figure.table --results="$results" --output="$tables"
  python -m figure.table "$results"/{table2,start,width,generator,edsr,sgd} --output="$tables"
  [ -z "$(ls "$results/width")" ] || python -m figure.plots --width "$results"/width/*.json --output="$tables/width.png"
}
trap collect EXIT

job= asked= # the running experiment; whether somebody wants it to stop
trap 'asked=yes; [ -z "$job" ] || kill -TERM "$job"' INT TERM

run() { # run NAME script flags...: unless it is done; NAME names the result's file
  local name=$1 script=$2 left=$((end - SECONDS)) status; shift 2
  [ "$only" = "  " ] || [[ "$only" == *" $name "* ]] || return 0
  [ -f "$out/$name/results.json" ] && return 0
  [ "$left" -gt 0 ] || { echo "out of time before $name"; exit 0; }
  echo "== $name"
  timeout --signal=TERM --kill-after=60 "$left" python "$script" "$@" --data_dir="$data" --save_dir="$out/$name" \
    --output="$out/$name.pth" --resume=auto ${FLAGS:-} &
  job=$!
  wait "$job"; status=$?
  [ -z "$asked" ] || { wait "$job"; exit 130; } # its checkpoint is written
  job=
  [ $status -eq 124 ] && { echo "out of time in $name"; exit 0; }
  [ $status -eq 0 ] || { echo "$name ended with code $status"; exit $status; }
  rm -f "$results/$name".*.json
  cp "$out/$name/results.json" "$results/$name.json"
  measured=yes
}

# distil NAME flags...: of the VDSR teacher
distil() { run "$1" distillation.py --pretrained="$teacher" "${@:2}"; }

paper="--stu_step=50 --reconw=1.0 --inc_num=1 --inc_step=0 --input_size=48 --iter=120 --latent=256 --lr_G=1e-5 --model_type=half --nEpochs=80"
# 20,000 student steps in the 50 epochs of the reference's defaults, and 400 of the generator at a rate that takes it as far as
# the paper's command takes each of its three.
short="--stu_step=50 --iter=8 --nEpochs=50 --lr_G=5e-5 --val_dataset=held_out --data_test=Set5+held_out"

# Table 1. The teacher by Adam and a cosine, which need fewer steps than the reference's SGD (the last lines run that).
[ -n "${TEACHER:-}" ] || run teacher train_teacher.py --model_type=origin --optimizer=adam --schedule=cosine --lr=5e-4 --nEpochs=100
distil fast --recipe=fast --nEpochs=60
distil recipe/epochs_1 --recipe=fast --nEpochs=1
distil recipe/epochs_3 --recipe=fast --nEpochs=3
distil recipe/epochs_10 --recipe=fast
run student train_teacher.py --model_type=half --optimizer=adam --schedule=cosine --nEpochs=80
run student_from_teacher train_teacher.py --model_type=half --student_init=teacher --pretrained="$teacher" --optimizer=muon \
  --schedule=trapezoid --nEpochs=80
distil ours $paper
distil noise $paper --source=noise

# How much the start and the images matter, and the width.
for seed in 1 2 3; do
  distil "start/teacher_$seed" --recipe=fast --nEpochs=3 --val_dataset=held_out --seed=$seed
  distil "start/random_$seed" --recipe=fast --nEpochs=3 --student_init=random --val_dataset=held_out --seed=$seed
  for source in generator noise folder; do
    distil "start/${source}_$seed" --recipe=fast --nEpochs=3 --source=$source --val_dataset=held_out --seed=$seed
  done
done
for width in 08 16 24 32 48; do
  distil "width/$width" --recipe=fast --nEpochs=3 --n_feats=$((10#$width)) --data_test=Set5+Set14
done

# What the generator's losses bring, on the demo's small teacher, x2, from random weights: one generator step after ten of the
# student, at a rate of 1e-3, since 150 steps at the paper's 1e-5 move nothing.
small() { # small NAME flags...
  run "generator/$1_$seed" distillation.py --pretrained=models/demo_teacher.pth --recipe=fast --student_init=random --bank=0 \
    --scale=2 --nEpochs=6 --iter=25 --stu_step=10 --val_dataset=held_out --data_test=Set5+held_out --seed=$seed "${@:2}"
}
generated() { small "$1" --source=generator "${@:2}"; }
declare -A losses=([untrained]="--gw=0 --reconw=0" [reconstruction]="--lr_G=1e-3 --gw=0" [both]="--lr_G=1e-3"
  [adversarial]="--lr_G=1e-3 --reconw=0" [both_gw100]="--lr_G=1e-3 --gw=100")
for seed in 1 2 3; do
  small noise --source=noise
  small noise_normal --source=noise --noise=normal
  small folder --source=folder
  small dead_leaves+generator --source=dead_leaves+generator
  small dead_leaves
  generated mse_untrained --loss_type=MSE --gw=0 --reconw=0
  generated mse_both_gw100 --loss_type=MSE --lr_G=1e-3 --gw=100
  for of in untrained reconstruction adversarial both both_gw100; do generated $of ${losses[$of]}; done
  generated both_lr1e-5
  for rate in 1e-4 1e-3 1e-2; do generated rounded_lr$rate --lr_G=$rate --rounded; done
  for of in untrained adversarial both_gw100; do generated ${of}_stages ${losses[$of]} --inc_num=6 --inc_step=1; done
  for of in untrained adversarial both_gw100 reconstruction; do
    generated from_teacher_$of ${losses[$of]} --student_init=teacher
  done
  small from_teacher_noise --source=noise --student_init=teacher
done

# Table 2 (figure/table.py says which row has what).
row() { distil "table2/$1_$seed" $short --scale=2 --seed=$seed "${@:2}"; }
for seed in 1 2 3; do
  stages="--inc_num=18 --inc_step=1"
  row m1 --source=noise
  row m2 --gw=0
  row dfad --reconw=0
  row m3
  row m3_lr1e-4 --lr_G=1e-4
  row m4 --reconw=0 $stages
  row ours $stages
  row untrained --gw=0 --reconw=0
  row untrained_stages --gw=0 --reconw=0 $stages
done

# EDSR: teachers, the larger scales starting from x2, and half-width students: with the data, generated, dead leaves.
for scale in 2 3 4; do
  edsr="--scale=$scale --batchSize=16 --optimizer=adam --schedule=cosine --lr=1e-4" size=$((48 * scale))
  from="--pretrained=$out/edsr/teacher_x2.pth"; [ $scale = 2 ] && from="--arch=edsr_baseline"
  own=$out/edsr/teacher_x$scale.pth
  run edsr/teacher_x$scale train_teacher.py --model_type=origin $from $edsr --patch_size=$size --nEpochs=100
  run edsr/student_x$scale train_teacher.py --model_type=half --arch=edsr_baseline $edsr --patch_size=$size --nEpochs=100
  run edsr/generator_x$scale distillation.py --pretrained="$own" $edsr --input_size=$size --iter=20 --nEpochs=60
  run edsr/fast_x$scale distillation.py --pretrained="$own" --recipe=fast --input_size=$size
done

# The reference's own recipe for teacher and student with data.
run sgd/teacher train_teacher.py --model_type=origin
run sgd/student train_teacher.py --model_type=half
