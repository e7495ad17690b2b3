#!/bin/bash
# Runs quant/cluster/examples/job.sbatch in a real SLURM of two nodes, and compares what it makes with a run without a cluster.
# By hand, as root, in the project's folder with its .venv and Ray (make cluster): bash tests/slurm.sh [--keep]
# Needs Debian's packages: apt-get install slurm-wlm. A node is a slurmd in namespaces of its own for its network (10.77.0.N), its
# processes, its name and /tmp/ray; both see this machine's disk, as a shared file system. Nothing outside a temporary folder is
# changed, and the namespaces go with the script.
set -euo pipefail
root=$(pwd) work=$(mktemp -d /var/tmp/quant-slurm.XXXX) daemons=()
export SLURM_CONF=$work/slurm.conf DVC_NO_ANALYTICS=true

end() {
  for pid in "${daemons[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done  # unshare minds no other signal; its child goes too
  sleep 1
  for n in 1 2; do ip netns del "quant-n$n" 2>/dev/null || true; ip link del "quant-v$n" 2>/dev/null || true; done
  ip link del quant0 2>/dev/null || true
  [ "${1:-}" = kept ] || rm -rf "$work"
}
trap 'end "${kept:-}"' EXIT
[ "${1:-}" != --keep ] || { kept=kept; echo "logs stay in $work"; }

echo "a tiny project, and what one machine makes of it"
targets="evaluate@whole evaluate@int4 evaluate@mix4"
. .venv/bin/activate
python - "$work/project" <<'PYTHON'
import sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
from torture import make_project
make_project(Path(sys.argv[1]))
PYTHON
cp -a "$work/project" "$work/alone"
(cd "$work/alone" && OMP_NUM_THREADS=1 python -m dvc repro $targets > "$work/alone.log" 2>&1)
cp "$work/alone/dvc.lock" "$work/project/dvc.lock"
ln -s "$root/.venv" "$work/project/.venv"

echo "a network, a controller and two nodes"
ip link add quant0 type bridge
ip addr add 10.77.0.254/24 dev quant0
ip link set quant0 up
mkdir "$work/state"
cat > "$SLURM_CONF" <<CONF
ClusterName=quant
SlurmctldHost=$(hostname -s)(10.77.0.254)
AuthType=auth/none
CredType=cred/none
SlurmUser=root
StateSaveLocation=$work/state
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/%n.pid
SlurmdSpoolDir=$work/%n
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=3600
NodeName=n1 NodeAddr=10.77.0.1 NodeHostname=n1 CPUs=2
NodeName=n2 NodeAddr=10.77.0.2 NodeHostname=n2 CPUs=2
PartitionName=main Nodes=n1,n2 Default=YES State=UP
CONF
slurmctld -D > "$work/daemons.log" 2>&1 &
daemons+=($!)
for n in 1 2; do
  ip netns add "quant-n$n"
  ip link add "quant-v$n" type veth peer name eth0 netns "quant-n$n"
  ip link set "quant-v$n" master quant0 up
  ip -n "quant-n$n" addr add "10.77.0.$n/24" dev eth0
  ip -n "quant-n$n" link set eth0 up
  ip -n "quant-n$n" link set lo up
  nsenter --net="/run/netns/quant-n$n" unshare --uts --mount --pid --fork --kill-child --mount-proc bash -c "
    hostname n$n && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && exec slurmd -D -N n$n" >> "$work/daemons.log" 2>&1 &
  daemons+=($!)
done
for _ in $(seq 60); do [ "$(sinfo --noheader --states=idle --format=%D)" = 2 ] && break; sleep 1; done
sinfo
srun --nodes=2 bash -c 'echo "$(hostname): $(hostname -I)"'

echo "the job"
cd "$work/project"
job=$(QUANT_CPUS=1 JOBS=3 sbatch --parsable --nodes=2 --cpus-per-task=2 --output="$work/job.log" \
  quant/cluster/examples/job.sbatch $targets)
while [ -n "$(squeue --noheader --job "$job" 2>/dev/null)" ]; do sleep 2; done
cat "$work/job.log"
scontrol show job "$job" | grep -o 'JobState=[A-Z]*'
tasks=$(grep -o '\[n[12]\]' "$work/job.log" | sort | uniq -c | tr -s ' \n' ' ')

cmp dvc.lock "$work/alone/dvc.lock"
for folder in models data/reference reports/quality; do diff -r "$folder" "$work/alone/$folder"; done
python -m dvc status $targets
echo "equal: dvc.lock, models, data/reference, reports/quality; lines by node:$tasks"
