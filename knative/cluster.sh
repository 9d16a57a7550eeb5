#!/bin/sh
# darkroom on a local Kubernetes (k3d), step by step; `make setup-cluster` and the other targets run it. Each step can be
# repeated, and uses only its own cluster. With DRY_RUN=1 it prints the commands and runs none.
#
#   cluster.sh setup-cluster|deploy-services|deploy-app|deploy-balancer|start-workshop|api-ui|flower-ui|show-ui|remove-app|clean-all
set -eu
cd "$(dirname "$0")/.."

CLUSTER=darkroom
CONTEXT=k3d-$CLUSTER
NAMESPACE=darkroom
OVERLAY=knative/overlays/k3d
POOLS=knative/samples/pools-cpu.yaml
DRY_RUN=${DRY_RUN:-}
TIMEOUT=600s # images are downloaded meanwhile

say() { printf '== %s\n' "$*"; }

run() { # COMMAND...
  if [ -z "$DRY_RUN" ]; then
    "$@"
    return
  fi
  for word; do
    case $word in
      *[!A-Za-z0-9_./:=@,%+-]*) printf " '%s'" "$word" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
  printf '\n'
}

kube() { run kubectl --context "$CONTEXT" "$@"; }

needs() { # PROGRAM...
  lacking=
  for program; do
    command -v "$program" >/dev/null && continue
    lacking=$program
    case $program in
      docker) how='k3d runs its nodes in Docker: https://docs.docker.com/engine/install' ;;
      k3d) how='https://k3d.io/#installation, or: brew install k3d' ;;
      kubectl) how='1.21 or newer: https://kubernetes.io/docs/tasks/tools, or: brew install kubectl' ;;
      podman) how='builds the images: apt-get install podman, or: brew install podman' ;;
      *) how='' ;;
    esac
    printf '%s is not installed; %s\n' "$program" "$how" >&2
  done
  [ -z "$lacking" ] || [ -n "$DRY_RUN" ] || exit 1
}

needs_cluster() {
  needs docker k3d kubectl
  [ -z "$DRY_RUN" ] || return 0
  k3d cluster list "$CLUSTER" >/dev/null 2>&1 || {
    echo "the cluster $CLUSTER does not exist: \`make setup-cluster\` creates it" >&2
    exit 1
  }
}

setup_cluster() {
  needs docker k3d kubectl
  say "The cluster $CLUSTER, on port 80 of this machine"
  if [ -z "$DRY_RUN" ] && k3d cluster list "$CLUSTER" >/dev/null 2>&1; then
    run k3d cluster start "$CLUSTER"
  else
    run k3d cluster create "$CLUSTER" --port 80:80@loadbalancer --k3s-arg --disable=traefik@server:0 --wait
  fi
  say 'Knative Serving with Kourier, and Knative Eventing with its in-memory Broker'
  serving=https://github.com/knative/serving/releases/latest/download
  eventing=https://github.com/knative/eventing/releases/latest/download
  kourier=https://github.com/knative-extensions/net-kourier/releases/latest/download
  kube apply --filename $serving/serving-crds.yaml --filename $eventing/eventing-crds.yaml
  kube wait --for=condition=Established crd --all --timeout=60s
  kube apply --filename $serving/serving-core.yaml --filename $kourier/kourier.yaml
  kube apply --filename $eventing/eventing-core.yaml \
    --filename $eventing/in-memory-channel.yaml --filename $eventing/mt-channel-broker.yaml
  kube --namespace knative-serving patch configmap config-network --type merge \
    --patch '{"data":{"ingress-class":"kourier.ingress.networking.knative.dev"}}'
  # A name that resolves to 127.0.0.1, where k3d forwards port 80 to Kourier.
  kube --namespace knative-serving patch configmap config-domain --type merge \
    --patch '{"data":{"127.0.0.1.sslip.io":""}}'
  for namespace in knative-serving kourier-system knative-eventing; do
    kube --namespace "$namespace" wait --for=condition=Available deployment --all --timeout="$TIMEOUT"
  done
}

named_images() {
  rendered=$(kubectl kustomize "$OVERLAY")
  { printf '%s\n' "$rendered" && cat "$POOLS"; } | sed -n 's|^ *image: \(dev\.local/.*\)$|\1|p' | sort -u
}

load_images() { # darkroom's images that the overlay and the pools name; they are built first if one is missing
  [ -z "${loaded:-}" ] || return 0
  loaded=yes
  needs podman
  say "darkroom's images, into the cluster"
  if [ -n "$DRY_RUN" ]; then
    images=dev.local/darkroom-...
    folder=.
  else
    images=$(named_images)
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
  fi
  for image in $images; do
    if [ -n "$DRY_RUN" ] || ! podman image exists "$image"; then
      run make images
      [ -n "$DRY_RUN" ] || images=$(named_images) # make images has written their tags
      break
    fi
  done
  # shellcheck disable=SC2086 # a list of names without blanks
  run podman save --quiet --format docker-archive --multi-image-archive --output "$folder/images.tar" $images
  run k3d image import --cluster "$CLUSTER" "$folder/images.tar"
}

deploy_services() {
  needs_cluster
  load_images
  say 'The dependencies of darkroom: namespace, settings, Secrets, Redis, PostgreSQL, an S3 server'
  kube apply --kustomize "$OVERLAY" --selector app.kubernetes.io/component=services
  for name in redis postgresql s3; do
    kube --namespace "$NAMESPACE" rollout status "statefulset/$name" --timeout="$TIMEOUT"
  done
}

deploy_app() {
  needs_cluster
  load_images
  say 'darkroom: the functions, Broker and Triggers, the courier, Flower, the operator'
  kube apply --kustomize "$OVERLAY"
  kube wait --for=condition=Established crd/workerpools.darkroom.dev --timeout=60s
  for name in courier flower darkroom-operator; do
    kube --namespace "$NAMESPACE" rollout status "deployment/$name" --timeout="$TIMEOUT"
  done
  kube --namespace "$NAMESPACE" wait --for=condition=Ready services.serving.knative.dev --all --timeout="$TIMEOUT"
  say 'Pools of workers without a GPU, for the models flux and sd; a worker starts when there is a job'
  kube apply --filename "$POOLS"
}

deploy_balancer() {
  needs_cluster
  load_images
  say 'The gateway: one address for all functions, which can also wait for results.'
  say 'It does not distribute jobs over pools: each model has one pool, which the operator scales.'
  kube apply --kustomize "$OVERLAY" --selector app.kubernetes.io/component=gateway
  kube --namespace "$NAMESPACE" rollout status deployment/gateway --timeout="$TIMEOUT"
}

api_ui() {
  needs_cluster
  say 'The API at http://localhost:8000, until Ctrl-C'
  kube --namespace "$NAMESPACE" port-forward service/gateway 8000:80
}

flower_ui() {
  needs_cluster
  say 'Flower at http://localhost:5555, until Ctrl-C. Its name and password:'
  say "kubectl --context $CONTEXT -n $NAMESPACE get secret darkroom-flower -o jsonpath='{.data.basic-auth}' | base64 -d"
  kube --namespace "$NAMESPACE" port-forward service/flower 5555:5555
}

show_ui() {
  cat <<END
API                   make api-ui, then http://localhost:8000; a picture: curl -X POST -H "Authorization: Bearer KEY" http://localhost:8000/flux
first key             kubectl --context $CONTEXT -n $NAMESPACE get secret darkroom-root -o jsonpath='{.data.root-key}' | base64 -d
Flower                make flower-ui, then http://localhost:5555
pods                  kubectl --context $CONTEXT -n $NAMESPACE get pods
logs of a pod         kubectl --context $CONTEXT -n $NAMESPACE logs POD
worker pools          kubectl --context $CONTEXT -n $NAMESPACE get wp
END
}

remove_app() {
  needs_cluster
  if [ -n "$DRY_RUN" ] || kubectl --context "$CONTEXT" get crd workerpools.darkroom.dev >/dev/null 2>&1; then
    say 'Deleting the pools; busy workers finish their job, for as long as drainSeconds allows'
    kube --namespace "$NAMESPACE" delete workerpools --all --cascade=foreground --timeout="$TIMEOUT"
  fi
  say 'Deleting darkroom with all its data; the cluster and Knative stay'
  kube delete --kustomize "$OVERLAY" --ignore-not-found
}

clean_all() {
  needs docker k3d
  say "Deleting the cluster $CLUSTER with its contents"
  run k3d cluster delete "$CLUSTER"
}

case ${1:-} in
  setup-cluster) setup_cluster ;;
  deploy-services) deploy_services ;;
  deploy-app) deploy_app ;;
  deploy-balancer) deploy_balancer ;;
  start-workshop)
    setup_cluster
    deploy_services
    deploy_app
    deploy_balancer
    show_ui
    ;;
  api-ui) api_ui ;;
  flower-ui) flower_ui ;;
  show-ui) show_ui ;;
  remove-app) remove_app ;;
  clean-all) clean_all ;;
  *)
    sed -n '2,5p' "$0" >&2
    exit 2
    ;;
esac
