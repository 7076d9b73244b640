#!/bin/sh
# Write random secrets into the new folder DIR, one file for each reader; for services/compose.yaml and the overlays of
# kubernetes/:   sh cluster/deploy/secrets.sh DIR
set -eu
folder=${1:?usage: secrets.sh DIR}
umask 077
mkdir "$folder"
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

mlflow=$(secret) s3_id=$(secret | cut -c1-20) s3_key=$(secret)
echo "auth_token=$(secret)" > "$folder/ray.env"
echo "password=$(secret)" > "$folder/redis.env"
cat > "$folder/zpoint.env" <<END
ZPOINT_TOKEN=$(secret)
MLFLOW_TRACKING_USERNAME=admin
MLFLOW_TRACKING_PASSWORD=$mlflow
END
cat > "$folder/s3.env" <<END
AWS_ACCESS_KEY_ID=$s3_id
AWS_SECRET_ACCESS_KEY=$s3_key
END
cat > "$folder/s3-root.env" <<END
ROOT_ACCESS_KEY=$s3_id
ROOT_SECRET_KEY=$s3_key
END
cat > "$folder/mlflow.env" <<END
MLFLOW_AUTH_ADMIN_USERNAME=admin
MLFLOW_AUTH_ADMIN_PASSWORD=$mlflow
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret)
END
echo "POSTGRES_PASSWORD=$(secret)" > "$folder/postgres.env"
echo "GF_SECURITY_ADMIN_PASSWORD=$(secret)" > "$folder/grafana.env"
