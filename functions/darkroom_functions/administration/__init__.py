"""Operations of the scope `admin`: tenants and keys."""
